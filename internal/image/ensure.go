package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/smolvm/smolvm/internal/oci"
)

// PullPolicy says when a registry is asked for an image.
type PullPolicy string

// The policies.
const (
	PullMissing PullPolicy = "missing" // if there is no image of that name here
	PullAlways  PullPolicy = "always"  // always, for what the name means there now
	PullNever   PullPolicy = "never"
)

// Ensure returns an image. It is called by its name: then it is the one of that name that is here
// or, if there is none, the one that a registry has, which is fetched; Default is built. Or it is
// called by where it is, as in BuildOptions.From: then it is made of that and named after it. Each
// is made once, in however many processes that is asked for, and what a registry has already given
// is not fetched again.
//
// progress may be nil; it is called from the calling goroutine and from others, one call at a time.
//
// It fails with ErrInvalidName, ErrNotFound, ErrOrigin if no image can be made of what is there,
// or an error of the network or the disk. When ctx ends, so do all child processes, and nothing
// remains of the build. Nor does anything of one that was killed: it counts as no image, and the
// next call removes it. Of what was being fetched that remains which has come, to go on with.
func (s *Store) Ensure(ctx context.Context, what string, policy PullPolicy, progress func(Progress)) (*Image, error) {
	r, err := parseRequest(what)
	if err != nil {
		return nil, err
	}
	if r.isPlace() {
		return s.Build(ctx, r.name, BuildOptions{From: r.from.String()}, progress)
	}
	img, err := s.find(ctx, r, policy)
	if !errors.Is(err, ErrNotFound) {
		return img, err
	}
	if policy == PullNever && !r.isBuiltin() {
		return nil, fmt.Errorf("%w here, and no registry is to be asked", err)
	}
	h, err := s.enterToBuild(ctx, r.name, progress)
	if err != nil {
		return nil, err
	}
	defer h.leave()
	if img, err := s.find(ctx, r, policy); !errors.Is(err, ErrNotFound) {
		return img, err
	}
	if r.isBuiltin() {
		if img, err := h.adopt(); img != nil || err != nil {
			return img, err
		}
		return s.build(ctx, h, s.source, Job{report: progress})
	}
	img, err = s.build(ctx, h, s.from(r.from), Job{report: progress})
	if fetch, ok := errors.AsType[*fetchError](err); ok && ctx.Err() == nil {
		err = fmt.Errorf("%w: %q is not here: %w", ErrNotFound, r.name, fetch.err)
	}
	return img, err
}

// find returns the image that is here, if that is what is wanted. Its error wraps ErrNotFound if
// there is none, or another one in the registry.
func (s *Store) find(ctx context.Context, r request, policy PullPolicy) (*Image, error) {
	img, err := s.Get(r.name)
	if err != nil {
		return nil, err
	}
	if !r.suits(img) {
		return nil, fmt.Errorf("%w: %q is not of %s", ErrNotFound, r.name, r.from)
	}
	// Only what is from a registry can be another one there.
	if policy != PullAlways || img.From != r.from.String() {
		return img, nil
	}
	source, err := s.newContainer(r.from, "")
	if err != nil {
		return nil, err
	}
	digest, err := oci.Digest(ctx, r.from, source.opts)
	if err != nil {
		return nil, fmt.Errorf("ask for image %q: %w", r.name, err)
	}
	if digest != img.Digest {
		return nil, fmt.Errorf("%w: %q is another one by now", ErrNotFound, r.name)
	}
	return img, nil
}

// Acquire returns an image as Ensure does and keeps all images of this store from being
// removed. The caller owes a release, which comes when it is noted for those who
// remove images that this one is in use. A shared image is kept by nobody.
func (s *Store) Acquire(ctx context.Context, what string, policy PullPolicy, progress func(Progress)) (img *Image, release func(), err error) {
	for {
		// A build takes long, and who removes something need not wait for it.
		made, err := s.Ensure(ctx, what, policy, progress)
		if err != nil {
			return nil, nil, err
		}
		// It may have been removed in between.
		img, release, err = s.keep(ctx, made.Name, made.ID)
		if !errors.Is(err, ErrNotFound) {
			return img, release, err
		}
	}
}

// keep returns the image with that ID and keeps all from being removed before the release, as
// Acquire does. It fails with ErrNotFound if it is gone.
func (s *Store) keep(ctx context.Context, name, id string) (img *Image, release func(), err error) {
	lock, err := s.lockUse(ctx, shared)
	if err != nil {
		return nil, nil, err
	}
	release = func() { _ = lock.Close() } // nothing was written to it
	if img, err = s.Find(name, id); err != nil {
		release()
		return nil, nil, err
	}
	return img, release, nil
}

// lockUse takes the lock on the use of the store's images: shared by who begins to use one,
// exclusive by who removes some. The caller closes it.
func (s *Store) lockUse(ctx context.Context, kind int) (*os.File, error) {
	if err := makePublic(s.dir); err != nil {
		return nil, fmt.Errorf("make directory of images: %w", err)
	}
	return lock(ctx, filepath.Join(s.dir, useLock), kind, nil)
}
