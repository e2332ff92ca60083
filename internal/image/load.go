package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/smolvm/smolvm/internal/oci"
)

// stdin is what an archive is called that came in a stream.
const stdin = "-"

// Load makes images of all that have a name in an archive: what docker save or Save wrote, maybe
// compressed by gzip or zstd, which its contents tell. Each is made as Build makes it. A file is
// read as it is, from its beginning, and a stream is copied to the store first. If Load fails, the
// images that it returns are there nevertheless.
func (s *Store) Load(ctx context.Context, r io.Reader, progress func(Progress)) (made []*Image, err error) {
	file, said, err := asFile(r)
	if err != nil {
		return nil, err
	}
	if file == nil {
		if file, err = s.spool(ctx, r); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
	}
	path := said
	if said == stdin {
		path = fmt.Sprintf("/proc/self/fd/%d", file.Fd()) // it may have no name, but can be opened
	}
	refs, err := s.listArchive(ctx, path)
	if err != nil {
		return nil, (&imported{said: said}).blame(err)
	}
	for _, ref := range refs {
		img, err := s.loadOne(ctx, ref, said, progress)
		if err != nil {
			return made, err
		}
		made = append(made, img)
	}
	return made, nil
}

func (s *Store) listArchive(ctx context.Context, path string) ([]oci.Reference, error) {
	cache, err := s.blobs()
	if err != nil {
		return nil, err
	}
	return oci.ListArchive(ctx, path, oci.Options{Cache: cache, Log: s.log})
}

// loadOne makes an image of an archive, which is called by another name than its path.
func (s *Store) loadOne(ctx context.Context, ref oci.Reference, said string, progress func(Progress)) (*Image, error) {
	as := ref
	as.Path = said
	if said == stdin && as.Name == "" && !strings.Contains(as.Tag, ":") {
		return nil, fmt.Errorf("%w: the image in it has no name; write it to a file, and use build --from", ErrOrigin)
	}
	name, err := nameOf(as)
	if err != nil {
		return nil, err
	}
	source := s.from(ref)
	source.said = as.String()
	return s.buildAs(ctx, name, source, Job{report: progress})
}

// asFile returns the file that a stream is, and what to call it, or nil if it is none.
func asFile(r io.Reader) (file *os.File, said string, err error) {
	file, isFile := r.(*os.File)
	if !isFile {
		return nil, stdin, nil
	}
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, "", fmt.Errorf("read archive: %w", err)
	case !info.Mode().IsRegular():
		return nil, stdin, nil
	case file.Name() == os.Stdin.Name():
		return file, stdin, nil
	}
	said, err = filepath.Abs(file.Name())
	return file, said, err
}

// spool copies a stream to a file without a name. If ctx ends, that goes on until the stream has
// something, or ends.
func (s *Store) spool(ctx context.Context, r io.Reader) (*os.File, error) {
	cache, err := s.blobs()
	if err != nil {
		return nil, err
	}
	file, err := cache.Scratch()
	if err != nil {
		return nil, err
	}
	copied := make(chan struct{})
	var copyErr error
	go func() {
		defer close(copied)
		_, copyErr = io.Copy(file, r)
	}()
	select {
	case <-copied:
	case <-ctx.Done():
		// Nothing makes it stop but the stream.
		go func() {
			<-copied
			_ = file.Close() // it is of no use any more
		}()
		return nil, ended(ctx)
	}
	if copyErr != nil {
		return nil, errors.Join(fmt.Errorf("read archive: %w", copyErr), file.Close())
	}
	return file, nil
}
