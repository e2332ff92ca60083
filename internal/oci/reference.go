package oci

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/smolvm/smolvm/internal/oci/blob"
)

// Kind is where a reference says that an image is.
type Kind string

// The kinds of references. Those of Tar, Dir and Disk have no layers, and Resolve takes none.
const (
	Registry      Kind = "docker"         // docker://HOST/NAME[:TAG][@DIGEST], or a bare name
	Layout        Kind = "oci"            // oci:DIR[:TAG][@DIGEST], a directory in OCI image layout
	OCIArchive    Kind = "oci-archive"    // oci-archive:FILE[:TAG][@DIGEST], the same as a tar file
	DockerArchive Kind = "docker-archive" // docker-archive:FILE[:NAME[:TAG]], as docker save writes it
	Tar           Kind = "tar"            // tar:FILE, a root filesystem, maybe compressed
	Dir           Kind = "dir"            // dir:DIR, a directory that is a root filesystem
	Disk          Kind = "disk"           // disk:FILE, an ext4 filesystem or a qcow2 disk
)

// dockerHub is the registry of names that don't say theirs, and officialImages the part of it
// whose names are not even said to be there.
const (
	dockerHub      = "docker.io"
	officialImages = "library/"
)

// defaultTag is meant where neither tag nor digest is given.
const defaultTag = "latest"

// Reference names an image. It is comparable.
type Reference struct {
	Kind Kind
	// Path is that of the file or directory, as it was given but without detours. It is empty
	// for a registry. In references to layouts and archives, which may have something after
	// the path, it has no colon.
	Path string
	// Host and Name are the registry and the name in it: "docker.io" and "library/python". For
	// a docker archive they are those of the image in it that is meant, if any is named.
	Host, Name string
	// Tag is never empty for a registry, unless there is a digest. For layouts it is the name
	// that the layout gives the image, whatever that is.
	Tag    string
	Digest string // of the manifest or index, if the image is pinned
}

// ParseReference reads a reference: one of the forms that the constants of Kind show, or a bare
// name as Docker reads it. It does not look whether there is such an image. It fails with
// ErrReference, and says what would be right.
func ParseReference(s string) (Reference, error) {
	ref, err := parseReference(s)
	if err != nil {
		return Reference{}, fmt.Errorf("%w %.300q: %w", ErrReference, s, err)
	}
	return ref, nil
}

func parseReference(s string) (Reference, error) {
	switch {
	case s == "":
		return Reference{}, problem("it is empty; say python:3.13-alpine, for example")
	case strings.ContainsRune(s, 0):
		return Reference{}, problem("it has a zero byte in it")
	}
	if rest, found := strings.CutPrefix(s, string(Registry)+"://"); found {
		return parseName(rest)
	}
	transport, rest, _ := strings.Cut(s, ":")
	switch kind := Kind(transport); kind {
	case Tar, Dir, Disk:
		return parsePath(kind, rest)
	case Layout, OCIArchive, DockerArchive:
		return parseInside(kind, rest)
	}
	if err := mistaken(s, transport, rest); err != nil {
		return Reference{}, err
	}
	return parseName(s)
}

// mistaken says what is meant by what is no bare name, although it may look like one.
func mistaken(s, transport, rest string) error {
	switch {
	case isTransport(transport):
		if port, _, path := strings.Cut(rest, "/"); !path || strings.Trim(port, digits) != "" {
			return problem("images of Docker and Podman are not read from their storage; write one to a file with " +
				"docker save -o FILE NAME, or podman save, and say docker-archive:FILE")
		}
	case strings.Contains(s, "://"):
		return problem("images are not read from such a place; for one in a registry say docker://HOST/NAME:TAG")
	case strings.HasPrefix(s, "/") || strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../") ||
		strings.HasPrefix(s, "~") || s == "." || s == "..":
		return problem("this is a path; say what is there: dir:PATH or tar:PATH for a root filesystem, oci:PATH for an " +
			"OCI image layout, oci-archive:PATH or docker-archive:PATH for an image in a file, disk:PATH for a disk")
	case !strings.ContainsAny(s, "/:@") && withoutExtension(s) != s:
		return problem("this looks like a file; say what is in it: tar:FILE for a root filesystem, docker-archive:FILE or " +
			"oci-archive:FILE for an image, disk:FILE for a disk (docker://docker.io/NAME if it is an image after all)")
	}
	return nil
}

// isTransport tells whether a colon after the word does not begin a tag.
func isTransport(word string) bool {
	switch Kind(word) {
	case Layout, OCIArchive, DockerArchive, Tar, Dir, Disk, "docker-daemon", "containers-storage":
		return true
	}
	return false
}

func parsePath(kind Kind, path string) (Reference, error) {
	if path == "" {
		return Reference{}, problem("the path is missing; say %s:PATH", kind)
	}
	return Reference{Kind: kind, Path: filepath.Clean(path)}, nil
}

// parseInside reads the path of something that may have several images, and which one is meant.
func parseInside(kind Kind, s string) (Reference, error) {
	s, digest, err := cutDigest(s)
	if err != nil {
		return Reference{}, err
	}
	path, inside, named := strings.Cut(s, ":")
	ref, err := parsePath(kind, path)
	if err != nil {
		return Reference{}, err
	}
	switch {
	case named && inside == "":
		return Reference{}, problem("after the last colon nothing follows; say %s:PATH, or %s:PATH:NAME", kind, kind)
	case kind == DockerArchive && digest != "":
		return Reference{}, problem("images in a docker archive have names only; say docker-archive:FILE:NAME:TAG")
	case kind == DockerArchive && named:
		name, err := parseName(inside)
		if err != nil {
			return Reference{}, err
		}
		if name.Digest != "" {
			return Reference{}, problem("images in a docker archive have names only; say docker-archive:FILE:NAME:TAG")
		}
		ref.Host, ref.Name, ref.Tag = name.Host, name.Name, name.Tag
	default:
		ref.Tag, ref.Digest = inside, digest
	}
	return ref, nil
}

// parseName reads the name of an image in a registry.
func parseName(s string) (Reference, error) {
	s, digest, err := cutDigest(s)
	if err != nil {
		return Reference{}, err
	}
	ref := Reference{Kind: Registry, Host: dockerHub, Digest: digest}
	name := s
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		name, ref.Tag = s[:i], s[i+1:]
		if err := checkTag(ref.Tag); err != nil {
			return Reference{}, err
		}
	} else if digest == "" {
		ref.Tag = defaultTag
	}
	if host, rest, found := strings.Cut(name, "/"); found && isHost(host) {
		ref.Host, name = host, rest
		if err := checkHost(host); err != nil {
			return Reference{}, err
		}
	}
	if ref.Host == "index.docker.io" { // as old versions of Docker called it
		ref.Host = dockerHub
	}
	ref.Name = name
	if ref.Host == dockerHub && name != "" && !strings.Contains(name, "/") {
		ref.Name = officialImages + name
	}
	return ref, checkName(ref.Name)
}

// cutDigest cuts a digest off the end.
func cutDigest(s string) (rest string, digest string, err error) {
	i := strings.LastIndexByte(s, '@')
	if i < 0 || strings.Contains(s[i:], "/") || !strings.Contains(s[i:], ":") {
		return s, "", nil
	}
	d, err := blob.ParseDigest(s[i+1:])
	return s[:i], string(d), err
}

// String is the whole reference, with all that was left out, and its kind. ParseReference
// returns the same for it.
func (r Reference) String() string {
	var b strings.Builder
	b.WriteString(string(r.Kind) + ":")
	switch {
	case r.Kind == Registry:
		b.WriteString("//" + r.Host + "/" + r.Name)
	case r.Name != "":
		b.WriteString(r.Path + ":" + r.Host + "/" + r.Name)
	default:
		b.WriteString(r.Path)
	}
	if r.Tag != "" {
		b.WriteString(":" + r.Tag)
	}
	if r.Digest != "" {
		b.WriteString("@" + r.Digest)
	}
	return b.String()
}

// problem says what is wrong with a reference.
func problem(format string, args ...any) error { return fmt.Errorf(format, args...) }
