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

// checkOrigin returns what an image of that name is to be made from.
func checkOrigin(name string, opts BuildOptions) (oci.Reference, error) {
	from, err := oci.ParseReference(opts.From)
	switch {
	case err != nil:
		return from, fmt.Errorf("%w: %w", ErrOrigin, err)
	case len(opts.Packages) > 0:
		return from, fmt.Errorf("%w: packages are installed only in images of the host's own distribution", ErrOrigin)
	case name == Default:
		return from, fmt.Errorf("%w: %q is of the host's own distribution; choose another name", ErrInvalidName, name)
	case from.Kind == oci.Registry:
		return from, nil
	}
	if from, err = absolute(from); err != nil {
		return from, err
	}
	return from, checkPlace(from)
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
