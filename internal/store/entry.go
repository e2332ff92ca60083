package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Entry is one VM as seen from outside.
type Entry struct {
	Record
	Dir string
	// Owned tells that a living process owns the VM.
	Owned bool
	// Alive tells that the VM's monitor lives though nobody owns the VM.
	Alive bool
	// Err says why the record cannot be read. Then only its Name and Dir are set.
	Err error
}

// Orphaned tells that the VM lives on without an owner, and is to have a new one.
func (e Entry) Orphaned() bool { return e.Alive && e.Run.Detached }

// Get returns the entry of one VM, or ErrNotFound.
func (s *Store) Get(ctx context.Context, name string) (Entry, error) {
	if err := CheckName(name); err != nil {
		return Entry{}, err
	}
	var entry Entry
	err := s.transition(ctx, func() error {
		dir := s.Dir(name)
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: %q", ErrNotFound, name)
		}
		entry = s.entry(dir)
		return entry.Err
	})
	return entry, err
}

// List returns all VMs by name. A record that cannot be read spoils only its own entry.
func (s *Store) List(ctx context.Context) ([]Entry, error) {
	var entries []Entry
	err := s.transition(ctx, func() error {
		dirs, err := s.directories("")
		for _, dir := range dirs {
			entries = append(entries, s.entry(dir))
		}
		return err
	})
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries, err
}

// entry looks at the VM in dir. The caller is within a transition, so that a VM that nobody owns
// stays as it is; an owner may end this moment, having written that its VM has ended. Thus the
// record is read after the lock was tried.
func (s *Store) entry(dir string) Entry {
	owned := isHeld(dir, lockFile)
	rec, err := readRecord(dir)
	if err != nil {
		return Entry{Record: Record{Name: filepath.Base(dir)}, Dir: dir, Err: err}
	}
	e := Entry{Record: rec, Dir: dir, Owned: owned}
	e.Alive = !e.Owned && rec.Run != nil && isHeld(dir, runLockFile)
	return e
}
