package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// home is the directory of a name in the store, held by this process: nobody else builds
// or removes there. The caller owes a leave.
type home struct {
	dir  string
	name string
	lock *os.File
}

// enter takes the directory of a name, and makes it if there is none. busy, which may be nil,
// is called when another process has it.
func (s *Store) enter(ctx context.Context, name string, busy func()) (*home, error) {
	dir, err := filepath.Abs(filepath.Join(s.dir, dirName(name)))
	if err != nil {
		return nil, fmt.Errorf("find directory of images: %w", err)
	}
	for ctx.Err() == nil {
		if err := errors.Join(makePublic(s.dir), makePublic(dir)); err != nil {
			return nil, fmt.Errorf("make directory of images: %w", err)
		}
		file, err := lock(ctx, filepath.Join(dir, lockFile), exclusive, busy)
		if err == nil {
			var h *home
			if h, err = newHome(dir, name, file); err == nil {
				return h, nil
			}
		}
		// Who was here last may have removed the directory.
		if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("wait for directory of images: %w", ended(ctx))
}

// tryEnter takes the directory of a name, at dir. It fails with errBusy if another process has
// it, and os.ErrNotExist if there is none.
func tryEnter(dir, name string) (*home, error) {
	file, err := tryLock(filepath.Join(dir, lockFile), exclusive)
	if err != nil {
		return nil, err
	}
	return newHome(dir, name, file)
}

// newHome returns the directory that the lock is of. It fails with os.ErrNotExist if that
// was removed by who had the lock before.
func newHome(dir, name string, lock *os.File) (*home, error) {
	if !isAt(lock, filepath.Join(dir, lockFile)) {
		return nil, errors.Join(os.ErrNotExist, lock.Close())
	}
	return &home{dir: dir, name: name, lock: lock}, nil
}

// isAt tells whether the open file is still the one at path.
func isAt(file *os.File, path string) bool {
	open, err := file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(open, there)
}

// leave gives the directory up, and removes it if it has nothing but the lock.
func (h *home) leave() {
	if entries, err := os.ReadDir(h.dir); err == nil && len(entries) == 1 && entries[0].Name() == lockFile {
		// Who waits for the lock sees that it is not at its path any more.
		_ = os.Remove(filepath.Join(h.dir, lockFile))
		_ = os.Remove(h.dir)
	}
	_ = h.lock.Close() // nothing was written to it
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
func (h *home) point(id string) error {
	// The lock is held: what is there was left by a process that died here.
	next := filepath.Join(h.dir, buildPrefix+currentLink)
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(id, next); err != nil {
		return err
	}
	if err := os.Rename(next, filepath.Join(h.dir, currentLink)); err != nil {
		return err
	}
	return syncPath(h.dir)
}

// adopt makes the newest image that is whole the current one and returns it, or nil if there
// is none. One that is not pointed to is there when the process that made it died in between.
func (h *home) adopt() (*Image, error) {
	for _, v := range versions(h.name, h.dir) {
		if v.Err != nil {
			continue
		}
		if err := h.point(v.ID); err != nil {
			return nil, fmt.Errorf("adopt image %q: %w", h.name, err)
		}
		return current(h.name, h.dir)
	}
	return nil, nil
}
