package share

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrFolder is wrapped by errors about a folder of the host that cannot be shared.
var ErrFolder = errors.New("cannot share folder")

const (
	// Of the files that this program may have open, each session keeps no more than this part for
	// what the guest's kernel knows but does not use, and as much for what it has opened...
	openShare = 16
	// ...within these bounds.
	minOpen = maxReopened
	maxOpen = 4096
)

// Folder is a folder of the host that is served to a guest. Its methods may be called concurrently.
type Folder struct {
	path     string
	readOnly bool
	owner    owner
	limit    int // see openShare

	mu       sync.Mutex
	root     int // -1: closed
	sessions sync.WaitGroup
}

// Open opens a folder. The path is the user's own, so links in it are followed. It fails with
// ErrFolder. The caller owes a Close.
func Open(path string, readOnly bool) (*Folder, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("%w: %s does not exist on this host; make it first, with: mkdir -p %s", ErrFolder, path, path)
	case errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("%w: %s is no directory; share the one that it is in", ErrFolder, path)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrFolder, &os.PathError{Op: "open", Path: path, Err: err})
	}
	f := &Folder{path: path, readOnly: readOnly, owner: currentOwner(), root: fd}
	if err := f.look(); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrFolder, err), unix.Close(fd))
	}
	return f, nil
}

// look finds out what this process may do.
func (f *Folder) look() error {
	fd, err := openBeneath(f.root, ".", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("this system cannot open files safely (openat2, since Linux 5.6): %w", err)
	}
	_ = unix.Close(fd)
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("read limit of open files: %w", err)
	}
	f.limit = int(min(max(files.Cur/openShare, minOpen), maxOpen))
	return nil
}

// begin returns the folder's directory, opened for a session that owns it.
func (f *Folder) begin() (int, *unix.Stat_t, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.root < 0 {
		return -1, nil, os.ErrClosed
	}
	fd, err := unix.FcntlInt(uintptr(f.root), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, nil, err
	}
	fd, stat, err := withStat(fd)
	if err == nil {
		f.sessions.Add(1)
	}
	return fd, stat, err
}

// Close ends the sharing, once the sessions have ended: whoever calls it has closed their
// connections. Closing twice does nothing.
func (f *Folder) Close() error {
	f.mu.Lock()
	root := f.root
	f.root = -1
	f.mu.Unlock()
	f.sessions.Wait()
	if root < 0 {
		return nil
	}
	return unix.Close(root)
}
