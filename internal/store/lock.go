package store

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The locks in a VM's directory. A lock is held by who has the open file that it was taken
// with, or a duplicate of it, so it can be handed to a child, and ends with the last
// process that has it.
const (
	lockFile    = "lock"     // held by the VM's owner
	runLockFile = "run.lock" // held by the VM's monitor
)

// tryLock takes a lock. The error is unix.EWOULDBLOCK if somebody else holds it.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written to it
		return nil, err
	}
	return f, nil
}

// isHeld tells whether somebody holds a lock of the VM in dir. One that cannot be tried
// counts as held. The caller is within a transition, in which nobody takes the lock for
// good.
func isHeld(dir, name string) bool {
	lock, err := tryLock(filepath.Join(dir, name))
	if err != nil {
		return true
	}
	return lock.Close() != nil
}
