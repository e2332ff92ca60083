package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockRetry is how often a busy lock is tried again. It guards work of many seconds.
const lockRetry = 50 * time.Millisecond

// The kinds of a lock: many may hold it shared, or one alone.
const (
	shared    = unix.LOCK_SH
	exclusive = unix.LOCK_EX
)

// errBusy says that others hold a lock.
const errBusy = unix.EWOULDBLOCK

// tryLock takes a lock on the file at path, which is made if there is none, and returns it
// open. The lock lasts until the file and all its duplicates are closed: one that child
// processes inherit lasts as long as any of them. It fails with errBusy if others have it.
func tryLock(path string, kind int) (*os.File, error) {
	// Only its owner can open the file: whoever could read it could lock it for ever.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	for {
		err := unix.Flock(int(file.Fd()), kind|unix.LOCK_NB)
		switch {
		case err == nil:
			return file, nil
		case !errors.Is(err, unix.EINTR):
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
		}
	}
}

// lock takes a lock as tryLock does. While others have it, it waits until ctx ends. Then busy,
// if it is not nil, is called once.
func lock(ctx context.Context, path string, kind int, busy func()) (*os.File, error) {
	var retry <-chan time.Time
	for {
		file, err := tryLock(path, kind)
		if !errors.Is(err, errBusy) {
			return file, err
		}
		if retry == nil {
			if busy != nil {
				busy()
			}
			ticker := time.NewTicker(lockRetry)
			defer ticker.Stop()
			retry = ticker.C
		}
		select {
		case <-retry:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for lock %s: %w", path, ended(ctx))
		}
	}
}
