package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Claim is the ownership of a VM. It ends with Release, Remove or the process.
// Its methods may be called concurrently.
type Claim struct {
	store *Store
	dir   string

	mu   sync.Mutex
	lock *os.File // nil once given up
	rec  Record
}

// errNotClaimed tells of a programming error: a claim used after its end.
var errNotClaimed = errors.New("VM is no longer claimed")

// Dir is the VM's directory.
func (c *Claim) Dir() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dir
}

// Record returns the VM's record as it was last written.
func (c *Claim) Record() Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

// Lock is the file that is the ownership. Whoever inherits it shares the ownership, and
// has it alone after Release: see Store.Inherit. It is nil once it is given up.
func (c *Claim) Lock() *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lock
}

// Update changes the record, on disk first.
func (c *Claim) Update(change func(*Record)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lock == nil {
		return errNotClaimed
	}
	rec := c.rec
	change(&rec)
	if err := writeRecord(c.dir, rec); err != nil {
		return err
	}
	c.rec = rec
	return nil
}

// Tidy removes disks and saved machines of the VM that its record does not name: a copy that was
// broken off leaves them. Its monitor must not run.
func (c *Claim) Tidy() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("tidy VM's directory: %w", err)
	}
	var errs []error
	for _, e := range entries {
		name := e.Name()
		stale := strings.HasSuffix(name, diskSuffix) && name != c.rec.DiskFile() || strings.HasPrefix(name, savedPrefix) && name != c.rec.Saved
		if stale {
			errs = append(errs, os.RemoveAll(filepath.Join(c.dir, name)))
		}
	}
	return errors.Join(errs...)
}

// RunLockPath is the path of the file of RunLock.
func (c *Claim) RunLockPath() string { return filepath.Join(c.Dir(), runLockFile) }

// RunLock locks a file that the VM's monitor is to inherit: as long as that keeps it open,
// everybody sees that the VM lives. The caller closes its own. It fails with ErrInUse
// while a monitor lives.
func (c *Claim) RunLock(ctx context.Context) (file *os.File, err error) {
	path := c.RunLockPath()
	// Within a transition nobody else tries the lock to see who lives.
	err = c.store.transition(ctx, func() (err error) {
		file, err = tryLock(path)
		return err
	})
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%w: its monitor lives", ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("lock VM's run: %w", err)
	}
	return file, nil
}

// Alive tells whether the VM's monitor lives.
func (c *Claim) Alive(ctx context.Context) (alive bool, err error) {
	dir := c.Dir()
	err = c.store.transition(ctx, func() error {
		alive = isHeld(dir, runLockFile)
		return nil
	})
	return alive, err
}

// Rename gives the VM another name. It fails with ErrExists if that is taken.
func (c *Claim) Rename(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lock == nil {
		return errNotClaimed
	}
	return c.store.transition(ctx, func() error {
		to := filepath.Join(filepath.Dir(c.dir), name)
		if _, err := os.Lstat(to); err == nil {
			return fmt.Errorf("%w: %q", ErrExists, name)
		}
		if err := os.Rename(c.dir, to); err != nil {
			return fmt.Errorf("rename VM: %w", err)
		}
		c.dir, c.rec.Name = to, name
		return writeRecord(c.dir, c.rec)
	})
}

// Release gives the VM up and leaves it as it is. It is idempotent.
func (c *Claim) Release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unlock()
}

// Remove removes the VM's directory and gives it up. It is idempotent.
func (c *Claim) Remove(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lock == nil {
		return nil
	}
	var removed string
	err := c.store.transition(ctx, func() (err error) {
		removed, err = retire(c.dir)
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(c.unlock(), os.RemoveAll(removed))
}

func (c *Claim) unlock() error {
	if c.lock == nil {
		return nil
	}
	err := c.lock.Close()
	c.lock = nil
	return err
}
