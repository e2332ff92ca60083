package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/smolvm/smolvm/internal/filelock"
)

const lockFile = "lock"

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
func lockDir(ctx context.Context, dir string) (*filelock.Lock, error) {
	for {
		err := makeDir(dir)
		var lock *filelock.Lock
		if err == nil {
			lock, err = filelock.Take(ctx, filepath.Join(dir, lockFile))
		}
		if errors.Is(err, os.ErrNotExist) && ctx.Err() == nil {
			continue // the directory, or the one above, went this moment
		}
		if err != nil {
			return nil, err
		}
		current, err := lock.Current()
		if current && err == nil {
			return lock, nil
		}
		if err := errors.Join(err, lock.Close()); err != nil {
			return nil, err
		}
	}
}

// makeDir makes the directory. The error is os.ErrNotExist if others remove it, or the one above,
// this moment.
func makeDir(dir string) error {
	err := os.MkdirAll(dir, 0o700)
	var at *os.PathError
	if !errors.Is(err, os.ErrExist) || !errors.As(err, &at) {
		return err
	}
	// What was there is gone by now, or there again, or it is no directory.
	info, statErr := os.Lstat(at.Path)
	if errors.Is(statErr, os.ErrNotExist) || statErr == nil && info.IsDir() {
		return &os.PathError{Op: at.Op, Path: at.Path, Err: os.ErrNotExist}
	}
	return err
}
