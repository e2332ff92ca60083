package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/vmm"
)

const (
	orphanTimeout = 2 * time.Second
	orphanRetry   = 2 * time.Millisecond
)

// orphan is the QEMU of a machine whose owner died.
type orphan struct {
	id     int
	handle *pidHandle
}

// findOrphan finds the QEMU that has the file at lock open. If there is none, the
// error wraps vmm.ErrGone.
//
// Others may have that file open too, and even locked for a moment, who want to know
// whether it is. And a child of the dead owner may be about to become QEMU. So
// while somebody holds the lock, it looks again.
func findOrphan(ctx context.Context, lock string) (*orphan, error) {
	ctx, cancel := context.WithTimeout(ctx, orphanTimeout)
	defer cancel()
	var file unix.Stat_t
	if err := unix.Stat(lock, &file); err != nil {
		return nil, &os.PathError{Op: "stat", Path: lock, Err: err}
	}
	again := time.NewTicker(orphanRetry)
	defer again.Stop()
	for {
		ids, err := processes()
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			if o, err := takeOrphan(id, &file); o != nil || err != nil {
				return o, err
			}
		}
		holder, err := lockHolder(ids, &file)
		if err != nil {
			return nil, err
		}
		if holder == 0 {
			return nil, vmm.ErrGone
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("process %d, which holds the lock, is not QEMU: %w", holder, ctx.Err())
		}
	}
}

// takeOrphan returns the process if it is a QEMU of ours that has file open, else nil.
func takeOrphan(id int, file *unix.Stat_t) (*orphan, error) {
	if is, err := isOrphan(id, file); !is || err != nil {
		return nil, err
	}
	handle, err := openPID(id)
	if err != nil {
		return nil, unlessGone(err)
	}
	// The ID may have become another process's before the handle was open.
	if is, err := isOrphan(id, file); !is || err != nil || handle.ended() {
		return nil, errors.Join(err, handle.Close())
	}
	return &orphan{id, handle}, nil
}

// isOrphan tells whether a process is a QEMU of ours, or about to become one, and
// has file open.
func isOrphan(id int, file *unix.Stat_t) (bool, error) {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", id))
	if err != nil || !strings.Contains(string(args), "\x00"+channelDevice+"\x00") {
		return false, unlessGone(err)
	}
	fds, err := descriptors(id, file)
	return len(fds) > 0, err
}

// lockHolder returns the ID of one who has locked file, but for this process itself,
// or 0.
func lockHolder(ids []int, file *unix.Stat_t) (int, error) {
	for _, id := range ids {
		if id == os.Getpid() {
			continue
		}
		fds, err := descriptors(id, file)
		if err != nil {
			return 0, err
		}
		for _, fd := range fds {
			info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", id, fd))
			if unlessGone(err) != nil {
				return 0, err
			}
			if strings.Contains(string(info), "FLOCK") {
				return id, nil
			}
		}
	}
	return 0, nil
}

// processes lists the IDs of all processes.
func processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var ids []int
	for _, e := range entries {
		if id, err := strconv.Atoi(e.Name()); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// descriptors returns a process's descriptors of file: none if it has ended, or is
// another user's.
func descriptors(id int, file *unix.Stat_t) (fds []string, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", id)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, unlessGone(err)
	}
	for _, e := range entries {
		var s unix.Stat_t
		// A descriptor that cannot be looked at is closed by now.
		if unix.Stat(filepath.Join(dir, e.Name()), &s) == nil && s.Dev == file.Dev && s.Ino == file.Ino {
			fds = append(fds, e.Name())
		}
	}
	return fds, nil
}

// unlessGone returns err, unless it says that a process has ended or is another
// user's. What this process lacks must not look like that.
func unlessGone(err error) error {
	for _, gone := range []error{os.ErrNotExist, os.ErrPermission, unix.ESRCH} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	return err
}

// KillOrphan ends the machine of an owner that died, in whatever state it is, waits
// until it is gone and removes its sockets. It is no error if it was gone already.
// What else the machine had, such as slirp4netns, ends by itself then.
func (d *Driver) KillOrphan(ctx context.Context, a vmm.Adoption) error {
	o, err := findOrphan(ctx, a.Lock)
	switch {
	case err == nil:
		err = adoptProcess(o.id, o.handle).kill()
	case errors.Is(err, vmm.ErrGone):
		err = nil
	}
	if err == nil {
		err = removeSockets(a.Dir)
	}
	if err != nil {
		return fmt.Errorf("end a machine without owner: %w", err)
	}
	return nil
}
