package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Ensure returns the image of that name. If it is Default, Ensure builds it first if there is
// none: once, in however many processes it is called. progress may be nil; it is called from
// the calling goroutine and from others, one call at a time.
//
// When ctx ends, so do all child processes, and nothing remains of the build. Nor does
// anything of one that was killed: it counts as no image, and the next call removes it.
func (s *Store) Ensure(ctx context.Context, name string, progress func(Progress)) (*Image, error) {
	img, err := s.Get(name)
	if !errors.Is(err, ErrNotFound) {
		return img, err
	}
	if name != Default {
		return nil, fmt.Errorf("%w, and only the image %q is made when it is needed; make this one first, of packages or of a root filesystem: smolvm build --help", err, Default)
	}
	if progress == nil {
		progress = func(Progress) {}
	}
	h, err := s.enterToBuild(ctx, name, progress)
	if err != nil {
		return nil, err
	}
	defer h.leave()
	if img, err := s.Get(name); !errors.Is(err, ErrNotFound) {
		return img, err
	}
	if img, err := h.adopt(); img != nil || err != nil {
		return img, err
	}
	return s.build(ctx, h, s.source, nil, progress)
}

// Acquire returns an image as Ensure does and keeps all images of this store from being
// removed. The caller owes a release, which comes when it is noted for those who
// remove images that this one is in use. A shared image is kept by nobody.
func (s *Store) Acquire(ctx context.Context, name string, progress func(Progress)) (img *Image, release func(), err error) {
	for {
		// A build takes long, and who removes something need not wait for it.
		if _, err := s.Ensure(ctx, name, progress); err != nil {
			return nil, nil, err
		}
		keep, err := s.lockUse(ctx, shared)
		if err != nil {
			return nil, nil, err
		}
		// It may have been removed in between.
		img, err := s.Get(name)
		if err == nil {
			return img, func() { _ = keep.Close() }, nil
		}
		_ = keep.Close() // nothing was written to it
		if !errors.Is(err, ErrNotFound) {
			return nil, nil, err
		}
	}
}

// lockUse takes the lock on the use of the store's images: shared by who begins to use one,
// exclusive by who removes some. The caller closes it.
func (s *Store) lockUse(ctx context.Context, kind int) (*os.File, error) {
	if err := makePublic(s.dir); err != nil {
		return nil, fmt.Errorf("make directory of images: %w", err)
	}
	return lock(ctx, filepath.Join(s.dir, useLock), kind, nil)
}
