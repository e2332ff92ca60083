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

// lock takes an exclusive lock on the file at path, which is made if there is none, and
// returns it open. The lock lasts until the file and all its duplicates are closed: one
// that child processes inherit lasts as long as any of them. If another process has it,
// busy is called once, and lock waits until it gets the lock or ctx ends.
func lock(ctx context.Context, path string, busy func()) (*os.File, error) {
	// Only its owner can open the file: whoever could read it could lock it for ever.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	var retry <-chan time.Time
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return file, nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
		}
		if retry == nil {
			busy()
			ticker := time.NewTicker(lockRetry)
			defer ticker.Stop()
			retry = ticker.C
		}
		select {
		case <-retry:
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for lock %s: %w", path, ended(ctx)), file.Close())
		}
	}
}
