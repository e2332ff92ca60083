package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Ensure returns the image of that name, and builds it first if there is none: once, in
// however many processes it is called. progress may be nil; it is called from the
// calling goroutine and from others, one call at a time.
//
// When ctx ends, so do all child processes, and nothing remains of the build. Nor does
// anything of one that was killed: it counts as no image, and the next call removes it.
func (s *Store) Ensure(ctx context.Context, name string, progress func(Progress)) (*Image, error) {
	img, err := s.Get(name)
	if !errors.Is(err, ErrNotFound) {
		return img, err
	}
	source := s.sources[name]
	if source == nil {
		return nil, fmt.Errorf("%w, and only the image %q can be built here", err, Default)
	}
	if progress == nil {
		progress = func(Progress) {}
	}
	home, err := filepath.Abs(filepath.Join(s.dir, name))
	if err != nil {
		return nil, fmt.Errorf("find directory of images: %w", err)
	}
	if err := errors.Join(makePublic(s.dir), makePublic(home)); err != nil {
		return nil, fmt.Errorf("make directory of images: %w", err)
	}
	lock, err := lock(ctx, filepath.Join(home, lockFile), func() {
		progress(Progress{Stage: "wait for the process that builds the image"})
	})
	if err != nil {
		return nil, err
	}
	defer lock.Close() //nolint:errcheck // nothing was written to it
	// What a killed build left costs space, but stands in nobody's way.
	s.sweep(ctx, home)
	if img, err := s.Get(name); !errors.Is(err, ErrNotFound) {
		return img, err
	}
	if img, err := adopt(name, home); img != nil || err != nil {
		return img, err
	}
	dir, err := os.MkdirTemp(home, buildPrefix)
	if err != nil {
		return nil, fmt.Errorf("make build directory: %w", err)
	}
	job := &Job{Dir: dir, Log: s.log.With("image", name), report: progress, lock: lock}
	img, err = s.build(ctx, source, name, home, job)
	// The clean-up must happen though ctx ended.
	s.sweep(context.WithoutCancel(ctx), home)
	if err != nil {
		return nil, fmt.Errorf("build image %q: %w", name, err)
	}
	return img, nil
}

// build lets the source make the image and puts it in its place. The rename of the
// directory is the moment from which on it exists.
func (s *Store) build(ctx context.Context, source Source, name, home string, job *Job) (*Image, error) {
	start := time.Now()
	work, final := job.Dir, filepath.Join(job.Dir, "image")
	manifest, err := source.Build(ctx, job)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(final, 0o755); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(work, modulesDir), 0o755); err != nil {
		return nil, err
	}
	for _, file := range []string{kernelFile, modulesDir, rootFSFile} {
		if err := os.Rename(filepath.Join(work, file), filepath.Join(final, file)); err != nil {
			return nil, err
		}
	}
	id, err := identify(ctx, final, manifest)
	if err != nil {
		return nil, err
	}
	if err := writeRecord(final, record{Manifest: manifest, ID: id, Created: time.Now().UTC().Truncate(time.Second)}); err != nil {
		return nil, err
	}
	if err := seal(ctx, final); err != nil {
		return nil, err
	}
	// The same image may be there already, but damaged, or it would have been used.
	if err := os.Rename(filepath.Join(home, id), filepath.Join(work, "damaged")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := os.Rename(final, filepath.Join(home, id)); err != nil {
		return nil, err
	}
	if err := point(home, id); err != nil {
		return nil, err
	}
	img, err := current(name, home)
	if err != nil {
		return nil, err
	}
	s.log.Info("image built", "image", name, "id", id, "description", img.Description, "took", time.Since(start).Round(time.Millisecond))
	return img, nil
}

// makePublic makes a directory that every user of the host can look into, whatever the
// umask is.
func makePublic(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil && !errors.Is(err, os.ErrPermission) {
		return err
	}
	return nil
}

// point makes the image with that ID the current one.
func point(home, id string) error {
	// The lock is held: what is there was left by a process that died here.
	next := filepath.Join(home, buildPrefix+currentLink)
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(id, next); err != nil {
		return err
	}
	if err := os.Rename(next, filepath.Join(home, currentLink)); err != nil {
		return err
	}
	return syncPath(home)
}

// adopt looks for an image that is complete but not pointed to, because the process
// that made it died in between, and makes it current.
func adopt(name, home string) (*Image, error) {
	entries, err := os.ReadDir(home)
	if err != nil {
		return nil, fmt.Errorf("find image %q: %w", name, err)
	}
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if _, err := load(name, filepath.Join(home, e.Name())); err != nil {
			continue
		}
		if err := point(home, e.Name()); err != nil {
			return nil, fmt.Errorf("adopt image %q: %w", name, err)
		}
		return current(name, home)
	}
	return nil, nil
}
