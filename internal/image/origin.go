package image

import (
	"errors"
	"fmt"
	"os"

	"github.com/smolvm/smolvm/internal/oci"
)

// ErrOrigin is wrapped by errors about where an image is to be made from: it is nothing that
// images are made from, or is not there, or its contents are malformed.
var ErrOrigin = errors.New("cannot make an image of this")

// origin returns what an image of that name is to be made from, with the kernel that it has unless
// another one is chosen.
func (s *Store) origin(name string, opts BuildOptions) (*imported, error) {
	if len(opts.Packages) > 0 {
		return nil, fmt.Errorf("%w: packages are installed only in images of the host's own distribution", ErrOrigin)
	}
	if err := checkFree(name); err != nil {
		return nil, err
	}
	r, err := parseRequest(opts.From)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOrigin, err)
	}
	if r.isPlace() {
		return s.from(r.from), checkPlace(r.from)
	}
	if own, err := s.Get(r.name); err == nil && !r.explicit {
		return &imported{store: s, own: own, said: imageOrigin + own.Name, kernel: &ownKernel{own}}, nil
	}
	if r.isBuiltin() {
		return nil, fmt.Errorf("%w: there is no image %q yet; make it with: smolvm pull", ErrOrigin, Default)
	}
	return s.from(r.from), nil
}

// imageOrigin is what Image.From begins with if it is another image.
const imageOrigin = "image:"

// from makes images of what is elsewhere.
func (s *Store) from(ref oci.Reference) *imported {
	return &imported{store: s, from: ref, kernel: &usualKernel{s}}
}

// checkPlace checks that there is something of the right kind.
func checkPlace(from oci.Reference) error {
	info, err := os.Stat(from.Path)
	directory := from.Kind == oci.Dir || from.Kind == oci.Layout
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrOrigin, err)
	case directory && !info.IsDir():
		return fmt.Errorf("%w: %s is no directory; for an archive write %s:%s", ErrOrigin, from.Path, twin(from.Kind), from.Path)
	case !directory && !info.Mode().IsRegular():
		return fmt.Errorf("%w: %s is no regular file; for a directory write %s:%s", ErrOrigin, from.Path, twin(from.Kind), from.Path)
	}
	return nil
}

// twin is the kind that the same thing is of if it is a file rather than a directory, or the
// other way round.
func twin(kind oci.Kind) oci.Kind {
	switch kind {
	case oci.Dir:
		return oci.Tar
	case oci.Layout:
		return oci.OCIArchive
	case oci.OCIArchive, oci.DockerArchive:
		return oci.Layout
	}
	return oci.Dir
}
