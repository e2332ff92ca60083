package image

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/smolvm/smolvm/internal/oci"
)

// maxName keeps names short enough for a directory.
const maxName = 200

// latestTag is what a name means that has no tag.
const latestTag = ":latest"

// ParseName returns the one way in which an image's name is written here: what Docker would call
// it, without the tag "latest". "docker.io/library/python:3" is "python:3", and "web:latest" is
// "web". Default alone is not the "debian:latest" of a registry. It fails with ErrInvalidName.
func ParseName(name string) (string, error) {
	ref, err := oci.ParseReference(name)
	if err == nil && ref.Kind != oci.Registry {
		err = fmt.Errorf("it is a place, %s", ref)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalidName, err)
	}
	if name == Default {
		return Default, nil
	}
	return nameOf(ref)
}

// checkFree refuses the one name whose meaning is given: Default, which only the host's own
// distribution can have. It fails with ErrInvalidName.
func checkFree(name string) error {
	if name == Default {
		return fmt.Errorf("%w: %q is of the host's own distribution; choose another name", ErrInvalidName, name)
	}
	return nil
}

// nameOf is what an image from there is called.
func nameOf(ref oci.Reference) (string, error) {
	name := ref.Familiar()
	if short := strings.TrimSuffix(name, latestTag); short != Default {
		name = short
	}
	if len(name) > maxName {
		return "", fmt.Errorf("%w: %q has %d characters, more than %d", ErrInvalidName, name, len(name), maxName)
	}
	return name, nil
}

// dirName is what the directory of a name is called: names have slashes.
func dirName(name string) string { return url.PathEscape(name) }

// nameOfDir is dirName undone. It fails if that is no directory of a name.
func nameOfDir(dir string) (string, error) {
	name, err := url.PathUnescape(dir)
	if err != nil {
		return "", err
	}
	parsed, err := ParseName(name)
	if err == nil && (parsed != name || dirName(name) != dir) {
		err = errors.New("it is written in another way")
	}
	return name, err
}

// request is what somebody wants an image of.
type request struct {
	name string        // of the image
	from oci.Reference // where it is made from, if it must be
	// explicit tells that the image must be from there, and not only of that name.
	explicit bool
}

// isPlace tells whether the image is made of what is at a place, which may be another thing each
// time.
func (r request) isPlace() bool { return !r.isBuiltin() && r.from.Kind != oci.Registry }

// isBuiltin tells whether it is the image that is made of the host's own packages.
func (r request) isBuiltin() bool { return r.name == Default }

// suits tells whether an image of the name is what is wanted.
func (r request) suits(img *Image) bool { return !r.explicit || img.From == r.from.String() }

// parseRequest reads a name, or a reference to where an image is. It fails with ErrInvalidName.
func parseRequest(what string) (request, error) {
	if what == Default {
		return request{name: Default}, nil
	}
	from, err := oci.ParseReference(what)
	if err != nil {
		return request{}, fmt.Errorf("%w: %w", ErrInvalidName, err)
	}
	r := request{from: from, explicit: strings.HasPrefix(what, string(oci.Registry)+"://")}
	if r.isPlace() {
		if r.from, err = absolute(from); err != nil {
			return request{}, err
		}
	}
	r.name, err = nameOf(r.from)
	return r, err
}

// absolute is the reference for whoever works in another directory.
func absolute(ref oci.Reference) (oci.Reference, error) {
	path, err := filepath.Abs(ref.Path)
	if err != nil {
		return ref, fmt.Errorf("find %s: %w", ref.Path, err)
	}
	ref.Path = path
	return ref, nil
}
