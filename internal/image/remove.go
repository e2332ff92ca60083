package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Remove removes those versions of an image that choose returns, of the store's own that it
// is given, newer ones first. While choose runs nobody is between Acquire and its release,
// so it sees all users. If it fails, nothing is removed.
//
// If the name meant one of them, it means the newest one that is left, or nothing. After a
// crash each version is there or gone; the next build, or Clean, removes the remains.
//
// Remove waits for a build of that name. It fails with ErrNotFound if the store has no
// version of its own.
func (s *Store) Remove(ctx context.Context, name string, choose func([]Version) ([]Version, error)) error {
	name, err := ParseName(name)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(s.dir, dirName(name))); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %q", ErrNotFound, name)
	}
	h, err := s.enter(ctx, name, nil)
	if err != nil {
		return err
	}
	defer h.leave()
	err = s.withdraw(ctx, h, choose)
	// The clean-up must happen though ctx ended.
	s.sweep(context.WithoutCancel(ctx), h.dir)
	return err
}

// withdraw takes the versions that choose returns out of sight.
func (s *Store) withdraw(ctx context.Context, h *home, choose func([]Version) ([]Version, error)) error {
	use, err := s.lockUse(ctx, exclusive)
	if err != nil {
		return err
	}
	defer use.Close() //nolint:errcheck // nothing was written to it
	all := versions(h.name, h.dir)
	if len(all) == 0 {
		return fmt.Errorf("%w: %q", ErrNotFound, h.name)
	}
	if now, err := current(h.name, h.dir); err == nil {
		for i, v := range all {
			all[i].Current = v.ID == now.ID
		}
	}
	doomed, err := choose(slices.Clone(all))
	if err != nil || len(doomed) == 0 {
		return err
	}
	if err := h.hide(all, doomed); err != nil {
		return fmt.Errorf("remove image %q: %w", h.name, err)
	}
	return nil
}

// hide points the name to a version that stays, then moves the doomed ones to where
// a sweep removes them.
func (h *home) hide(all, doomed []Version) error {
	isDoomed := func(v Version) bool {
		return slices.ContainsFunc(doomed, func(d Version) bool { return d.ID == v.ID })
	}
	if !slices.ContainsFunc(all, func(v Version) bool { return v.Current && !isDoomed(v) }) {
		successor := slices.IndexFunc(all, func(v Version) bool { return v.Err == nil && !isDoomed(v) })
		var err error
		if successor >= 0 {
			err = h.point(all[successor].ID)
		} else {
			err = os.Remove(filepath.Join(h.dir, currentLink))
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	bin, err := os.MkdirTemp(h.dir, buildPrefix)
	if err != nil {
		return err
	}
	for _, v := range doomed {
		if err := os.Rename(filepath.Join(h.dir, v.ID), filepath.Join(bin, v.ID)); err != nil {
			return err
		}
	}
	return syncPath(h.dir)
}

// InUse tells whether any process on this host has the image's root filesystem open, as a
// VM that runs does, whosever it is. It is false where that cannot be known: the caller does
// not own the image, or the filesystem that it is on knows no leases.
func (img *Image) InUse() bool {
	file, err := os.Open(img.RootFS)
	if err != nil {
		return false
	}
	defer file.Close() //nolint:errcheck // only read
	// The kernel leases a file for writing only to who is alone in having it open. The lease
	// ends when the file is closed.
	_, err = unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	return errors.Is(err, unix.EAGAIN)
}
