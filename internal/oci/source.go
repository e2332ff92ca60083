package oci

import (
	"context"
	"fmt"
	"io"
)

// source is where the parts of one image come from. All but Close may be called by many goroutines.
type source interface {
	// reference is the one that was asked for, with what was found out about it.
	reference() Reference
	// root returns the manifest or index that is meant: what is known of it, and its content.
	root(ctx context.Context) (descriptor, []byte, error)
	// open opens a part from offset on, or from its beginning; start tells which.
	open(ctx context.Context, d descriptor, offset int64) (body io.ReadCloser, start int64, err error)
	Close() error
}

func openSource(ctx context.Context, ref Reference, opts Options) (source, error) {
	switch ref.Kind {
	case Registry:
		return newRegistry(ref, opts)
	case Layout:
		return newLayout(ref, opts.wanted, directory(ref.Path))
	case OCIArchive:
		files, err := openArchive(ctx, ref.Path, opts)
		if err != nil {
			return nil, err
		}
		return newLayout(ref, opts.wanted, files)
	case DockerArchive:
		files, err := openArchive(ctx, ref.Path, opts)
		if err != nil {
			return nil, err
		}
		return newDockerArchive(ctx, ref, files)
	}
	return nil, fmt.Errorf("%s has no layers to get", ref)
}

// files are those of a layout or archive.
type files interface {
	// open opens a regular file and tells how many bytes it has. The error is fs.ErrNotExist if
	// there is none of the name.
	open(name string) (io.ReadSeekCloser, int64, error)
	Close() error
}

// readFile reads one that is not large.
func readFile(f files, name string, limit int64) ([]byte, error) {
	file, _, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // only read
	data, err := readBounded(file, limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", clean(name), err)
	}
	return data, nil
}

// openAt opens one of the size that it must have.
func openAt(f files, name string, size, offset int64) (io.ReadCloser, int64, error) {
	file, has, err := f.open(name)
	if err != nil {
		return nil, 0, err
	}
	if has != size {
		_ = file.Close() // only read
		return nil, 0, fmt.Errorf("%w: %s has %d bytes, not %d", ErrInvalid, clean(name), has, size)
	}
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		_ = file.Close() // only read
		return nil, 0, fmt.Errorf("read %s: %w", clean(name), err)
	}
	return file, offset, nil
}
