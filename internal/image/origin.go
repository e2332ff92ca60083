package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ErrOrigin is wrapped by errors about where an image is to be made from: it is nothing that
// images are made from, or is not there, or its contents are malformed.
var ErrOrigin = errors.New("cannot make an image of this")

// The kinds of origins.
const (
	originTar = "tar" // a root filesystem as a tar archive, plain or compressed by gzip, zstd or xz
	originDir = "dir" // a directory that is a root filesystem
	originOCI = "oci" // a directory of container images, an OCI image layout

	originDockerArchive = "docker-archive" // container images as docker save writes them
)

// origin is a root filesystem, or a container image, that somebody has.
type origin struct {
	kind, path string
	tag        string // which of the container images; empty: the only one
}

// isContainer tells whether it is a container image.
func (o origin) isContainer() bool { return o.kind == originOCI || o.kind == originDockerArchive }

// isDirectory tells whether it must be a directory, and not a file.
func (o origin) isDirectory() bool { return o.kind == originDir || o.kind == originOCI }

// twin is the kind that the same thing is of if it is a file rather than a directory, or the
// other way round.
func (o origin) twin() string {
	return map[string]string{
		originTar: originDir, originDir: originTar, originOCI: originDockerArchive, originDockerArchive: originOCI,
	}[o.kind]
}

// parseOrigin reads a kind and a path, as in "tar:FILE". Its error wraps ErrOrigin.
func parseOrigin(from string) (origin, error) {
	kind, path, found := strings.Cut(from, ":")
	if !found || !slices.Contains([]string{originTar, originDir, originOCI, originDockerArchive}, kind) {
		return origin{}, fmt.Errorf("%w: %.200q is none of tar:FILE, dir:PATH, oci:PATH:TAG and docker-archive:FILE", ErrOrigin, from)
	}
	if path == "" {
		return origin{}, fmt.Errorf("%w: %q names no path", ErrOrigin, from)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return origin{}, fmt.Errorf("find %s: %w", path, err)
	}
	o := origin{kind: kind, path: abs}
	if o.isContainer() {
		o.path, o.tag = cutTag(abs)
	}
	return o, nil
}

// cutTag cuts what names an image off the path of a file that is there.
func cutTag(path string) (file, tag string) {
	if _, err := os.Stat(path); err == nil {
		return path, ""
	}
	for i := range len(path) {
		if path[i] != ':' {
			continue
		}
		if _, err := os.Stat(path[:i]); err == nil {
			return path[:i], path[i+1:]
		}
	}
	return path, ""
}

// checkOrigin returns what an image of that name is to be made from.
func checkOrigin(name string, opts BuildOptions) (origin, error) {
	from, err := parseOrigin(opts.From)
	switch {
	case err != nil:
		return origin{}, err
	case len(opts.Packages) > 0:
		return origin{}, fmt.Errorf("%w: packages are installed only in images of the host's own distribution", ErrOrigin)
	case name == Default:
		return origin{}, fmt.Errorf("%w: %q is of the host's own distribution; choose another name", ErrInvalidName, name)
	}
	info, err := os.Stat(from.path)
	switch {
	case err != nil:
		return origin{}, fmt.Errorf("%w: %w", ErrOrigin, err)
	case from.isDirectory() && !info.IsDir():
		return origin{}, fmt.Errorf("%w: %s is no directory; for an archive write %s:%s", ErrOrigin, from.path, from.twin(), from.path)
	case !from.isDirectory() && !info.Mode().IsRegular():
		return origin{}, fmt.Errorf("%w: %s is no regular file; for a directory write %s:%s", ErrOrigin, from.path, from.twin(), from.path)
	}
	return from, nil
}

func (o origin) String() string {
	text := o.kind + ":" + o.path
	if o.tag != "" {
		text += ":" + o.tag
	}
	return text
}
