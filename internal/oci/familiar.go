package oci

import (
	"path/filepath"
	"strings"
)

// Familiar is the short name that people know an image by: "python:3.13-alpine",
// "ghcr.io/x/y:1". What comes from a file or directory has the name that is given to it there,
// or else that of the file, without what tells its format, as far as it can be one:
// "rootfs:latest" for tar:/tmp/rootfs.tar.gz. It always reads as a reference to a registry.
func (r Reference) Familiar() string {
	if r.Name == "" {
		if named, err := parseName(r.Tag); err == nil && strings.ContainsAny(r.Tag, "/:") {
			// Some tools give images in a layout their whole name.
			r.Host, r.Name, r.Tag = named.Host, named.Name, named.Tag
		} else {
			r.Host, r.Name = dockerHub, officialImages+r.baseName()
			if checkTag(r.Tag) != nil {
				r.Tag = ""
			}
		}
	}
	return shortName(r.Host, r.Name) + r.suffix()
}

// withinHost is Familiar without the host, for where that stands beside it.
func (r Reference) withinHost() string {
	r.Host = dockerHub
	return r.Familiar()
}

// shortName leaves out what a name means anyway.
func shortName(host, name string) string {
	if host != dockerHub {
		return host + "/" + name
	}
	short := name
	if rest, official := strings.CutPrefix(name, officialImages); official && !strings.Contains(rest, "/") {
		short = rest
	}
	first, _, several := strings.Cut(short, "/")
	if several && isHost(first) || !several && isTransport(first) {
		return host + "/" + short
	}
	return short
}

func (r Reference) suffix() string {
	suffix := ""
	if r.Tag != "" {
		suffix = ":" + r.Tag
	}
	if r.Digest != "" {
		suffix += "@" + r.Digest
	}
	if suffix == "" {
		suffix = ":" + defaultTag
	}
	return suffix
}

// baseName makes a name out of the last part of the path.
func (r Reference) baseName() string {
	base := filepath.Base(r.Path)
	if r.Kind != Layout && r.Kind != Dir {
		base = withoutExtension(base)
	}
	var parts []string
	for part := range strings.FieldsFuncSeq(strings.ToLower(base), func(r rune) bool {
		return !strings.ContainsRune(alphabet+".", r)
	}) {
		for strings.Contains(part, "..") {
			part = strings.ReplaceAll(part, "..", ".")
		}
		if part = strings.Trim(part, "."); part != "" {
			parts = append(parts, part)
		}
	}
	name := strings.Join(parts, "-")
	if name == "" || checkName(officialImages+name) != nil {
		return "image"
	}
	return name
}

// withoutExtension cuts off what tells the format of an image's file, if there is something.
func withoutExtension(name string) string {
	for _, extension := range []string{
		".tar", ".tar.gz", ".tar.xz", ".tar.zst", ".tgz", ".txz", ".tzst", ".ext4", ".qcow2", ".img", ".raw",
	} {
		if rest, found := strings.CutSuffix(name, extension); found && rest != "" {
			return rest
		}
	}
	return name
}
