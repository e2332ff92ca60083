// Package filelock takes the locks that processes hold for a moment, to change what they
// have in common.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrHeld is wrapped by errors about a lock that others have.
var ErrHeld = errors.New("others have the lock")

// Lock is the lock of a file, which nobody else has until Close or the end of the process; or, if
// it was taken shared, nobody has alone.
type Lock struct{ file *os.File }

// Take takes the lock of the file at path, and makes the file if there is none. Those who wait
// for it are queued by the kernel: who tried again and again instead would be passed over by
// chance for as long as others come, and take processor time from the one who is waited for.
func Take(ctx context.Context, path string) (*Lock, error) { return acquire(ctx, path, unix.LOCK_EX) }

// TakeShared is like Take for a lock that many may have at once, while nobody has it alone. Those
// who want it alone can be kept waiting by ever more who share it.
func TakeShared(ctx context.Context, path string) (*Lock, error) {
	return acquire(ctx, path, unix.LOCK_SH)
}

// Try takes the lock as Take does, but does not wait: it fails with ErrHeld while others have it.
func Try(path string) (*Lock, error) {
	l, err := try(path, unix.LOCK_EX)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, ErrHeld), l.file.Close())
	}
	return l, err
}

func acquire(ctx context.Context, path string, how int) (*Lock, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l, err := try(path, how)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return l.wait(ctx, how)
	}
	return l, err
}

// try makes the file if there is none and takes its lock. With EWOULDBLOCK, and with no other
// error, it returns the file, too.
func try(path string, how int) (*Lock, error) {
	// Nothing is written to it, and it may be on a file system that cannot be written.
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return nil, err
	}
	l := &Lock{file}
	err = l.flock(how | unix.LOCK_NB)
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(err, file.Close())
	}
	return l, err
}

// wait waits for its turn. Nothing can call a wait for the kernel off; if ctx ends, it goes on
// without the caller, and lets the lock go when it has it.
func (l *Lock) wait(ctx context.Context, how int) (*Lock, error) {
	taken := make(chan error)
	go func() {
		err := l.flock(how)
		select {
		case taken <- err:
		case <-ctx.Done():
			_ = l.Close() // nobody is left to be told
		}
	}()
	select {
	case err := <-taken:
		if err != nil {
			return nil, errors.Join(err, l.file.Close())
		}
		return l, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *Lock) flock(how int) error {
	for {
		err := unix.Flock(int(l.file.Fd()), how)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "lock", Path: l.file.Name(), Err: err}
		}
		return nil
	}
}

// Path is the path that the lock was taken by.
func (l *Lock) Path() string { return l.file.Name() }

// Current tells whether the file is still the one at its path. If it is not, the one who had the
// lock before has removed it, and the lock of another file counts.
func (l *Lock) Current() (bool, error) {
	own, err := l.file.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(l.file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(own, named), err
}

// Close lets the lock go.
func (l *Lock) Close() error {
	// A child that another goroutine starts this moment may have the open file, too, for a moment.
	return errors.Join(l.flock(unix.LOCK_UN), l.file.Close())
}
