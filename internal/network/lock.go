package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
)

const (
	lockFile  = "lock"
	lockRetry = 2 * time.Millisecond
)

// locked runs change while no other process changes what VMs have in common.
// When no VM is left, neither is the runtime directory.
func (h *Host) locked(ctx context.Context, change func(s *state) error) (err error) {
	dir, err := h.StateDir()
	if err != nil {
		return err
	}
	lock, err := lockDir(ctx, dir)
	if err != nil {
		return fmt.Errorf("lock the network: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	s, err := loadState(filepath.Join(dir, stateFile))
	if err != nil {
		return err
	}
	if err := change(s); err != nil {
		return err
	}
	if !s.unused {
		return nil
	}
	if err := os.Remove(lock.Path()); err != nil {
		return fmt.Errorf("remove runtime directory: %w", err)
	}
	// These fail if another process is about to use the directory again.
	_ = os.Remove(dir)
	_ = os.Remove(h.dir)
	return nil
}

// lockDir makes the directory and takes its lock. The process that had the lock
// may have removed the file; then what was locked is nobody's.
func lockDir(ctx context.Context, dir string) (*flock.Flock, error) {
	for {
		lock := flock.New(filepath.Join(dir, lockFile))
		err := os.MkdirAll(dir, 0o700)
		if err == nil {
			_, err = lock.TryLockContext(ctx, lockRetry)
		}
		if errors.Is(err, os.ErrNotExist) && ctx.Err() == nil {
			continue // the directory, or the one above, went this moment
		}
		if err != nil {
			return nil, err
		}
		locked, err := lock.Stat()
		if err != nil {
			return nil, errors.Join(err, lock.Close())
		}
		if named, err := os.Stat(lock.Path()); err == nil && os.SameFile(locked, named) {
			return lock, nil
		}
		if err := lock.Close(); err != nil {
			return nil, err
		}
	}
}
