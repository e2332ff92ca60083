package store

import (
	"context"
	"errors"
	"os"
	"sync"

	"github.com/gofrs/flock"
)

// Claim is the ownership of a VM. It ends with Release, Remove or the process.
// Its methods may be called concurrently.
type Claim struct {
	store *Store
	dir   string

	mu   sync.Mutex
	lock *flock.Flock // nil once given up
	rec  Record
}

// errNotClaimed tells of a programming error: a claim used after its end.
var errNotClaimed = errors.New("VM is no longer claimed")

// Dir is the VM's directory.
func (c *Claim) Dir() string { return c.dir }

// Record returns the VM's record as it was last written.
func (c *Claim) Record() Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
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
