// Package store is the data directory: a directory for each VM with its record
// and its lock, beside the images. Whoever holds a VM's lock owns the VM;
// a lock ends with its process, so what a dead owner left is always seen.
package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

var (
	// ErrNotFound is wrapped by errors about a VM that does not exist.
	ErrNotFound = errors.New("VM not found")
	// ErrExists is wrapped by errors about a VM name that is taken.
	ErrExists = errors.New("VM already exists")
	// ErrInUse is wrapped by errors about a VM that another process owns.
	ErrInUse = errors.New("VM is in use by another process")
)

// lockRetry is how often a busy lock is tried again. The transitions that it
// guards take about a millisecond.
const lockRetry = 2 * time.Millisecond

// Directories under way in or out of existence have names that no VM can have.
const (
	nascentPrefix = ".new-"
	removedPrefix = ".removed-"
)

// Store is a data directory. Its methods may be called concurrently, by several
// processes too.
type Store struct {
	root string
}

// Open opens the data directory at root and makes it if there is none.
func Open(root string) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("find data directory: %w", err)
	}
	s := &Store{root: root}
	// Images are for every user of the host to read; VMs are their owner's alone.
	if err := os.MkdirAll(s.root, 0o755); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	for _, dir := range []string{s.vms(), s.Cache(), s.Keys()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make data directory: %w", err)
		}
	}
	return s, nil
}

// DefaultRoot is the data directory of the current user: $SMOLVM_DATA_DIR, for
// root SystemRoot, else smolvm under $XDG_DATA_HOME or ~/.local/share.
func DefaultRoot() (string, error) {
	if dir := os.Getenv("SMOLVM_DATA_DIR"); dir != "" {
		return dir, nil
	}
	if os.Geteuid() == 0 {
		return SystemRoot, nil
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "smolvm"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find data directory: %w", err)
	}
	return filepath.Join(home, ".local", "share", "smolvm"), nil
}

// SystemRoot is root's data directory. Its images serve every user of the host.
const SystemRoot = "/var/lib/smolvm"

const imagesDir = "images"

// SystemImages is the directory of those images.
func SystemImages() string { return filepath.Join(SystemRoot, imagesDir) }

// Root is the path of the data directory.
func (s *Store) Root() string { return s.root }

// Images is the path of the directory for images. It may not exist yet.
func (s *Store) Images() string { return filepath.Join(s.root, imagesDir) }

// Cache is the path of the directory for what can be found out again.
func (s *Store) Cache() string { return filepath.Join(s.root, "cache") }

// Keys is the path of the directory for the user's SSH key.
func (s *Store) Keys() string { return filepath.Join(s.root, "ssh") }

func (s *Store) vms() string { return filepath.Join(s.root, "vms") }

// Create makes the VM's directory with its record and claims it. It fails with
// ErrExists if the name is taken and ErrInvalidName if it is no name.
func (s *Store) Create(ctx context.Context, rec Record) (*Claim, error) {
	if err := CheckName(rec.Name); err != nil {
		return nil, err
	}
	var claim *Claim
	err := s.transition(ctx, func() error {
		final := filepath.Join(s.vms(), rec.Name)
		if _, err := os.Lstat(final); err == nil {
			return fmt.Errorf("%w: %q", ErrExists, rec.Name)
		}
		nascent, err := os.MkdirTemp(s.vms(), nascentPrefix)
		if err != nil {
			return fmt.Errorf("make VM directory: %w", err)
		}
		rec.OwnerPID = os.Getpid()
		if err := writeRecord(nascent, rec); err != nil {
			return errors.Join(err, os.RemoveAll(nascent))
		}
		if err := os.Rename(nascent, final); err != nil {
			return errors.Join(fmt.Errorf("make VM directory: %w", err), os.RemoveAll(nascent))
		}
		claim, err = s.claim(final)
		return err
	})
	return claim, err
}

// Claim makes the caller the VM's owner. It fails with ErrNotFound, or with
// ErrInUse while another owner lives.
func (s *Store) Claim(ctx context.Context, name string) (*Claim, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	var claim *Claim
	err := s.transition(ctx, func() (err error) {
		claim, err = s.claim(filepath.Join(s.vms(), name))
		return err
	})
	return claim, err
}

// claim takes the lock of the VM in dir. The caller is within a transition.
func (s *Store) claim(dir string) (*Claim, error) {
	name := filepath.Base(dir)
	rec, err := readRecord(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %q", ErrNotFound, name)
	} else if err != nil {
		return nil, err
	}
	lock := vmLock(dir)
	if held, err := lock.TryLock(); err != nil {
		return nil, fmt.Errorf("lock VM %q: %w", name, err)
	} else if !held {
		return nil, fmt.Errorf("%w: %q belongs to process %d", ErrInUse, name, rec.OwnerPID)
	}
	c := &Claim{store: s, dir: dir, lock: lock, rec: rec}
	if rec.OwnerPID != os.Getpid() {
		if err := c.Update(func(r *Record) { r.OwnerPID = os.Getpid() }); err != nil {
			return nil, errors.Join(err, lock.Close())
		}
	}
	return c, nil
}

// Entry is one VM as seen from outside.
type Entry struct {
	Record
	Dir string
	// Owned tells that a living process owns the VM.
	Owned bool
	// Err says why the record cannot be read. Then only its Name and Dir are set.
	Err error
}

// Get returns the entry of one VM, or ErrNotFound.
func (s *Store) Get(ctx context.Context, name string) (Entry, error) {
	if err := CheckName(name); err != nil {
		return Entry{}, err
	}
	var entry Entry
	err := s.transition(ctx, func() error {
		dir := filepath.Join(s.vms(), name)
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

func (s *Store) entry(dir string) Entry {
	rec, err := readRecord(dir)
	if err != nil {
		return Entry{Record: Record{Name: filepath.Base(dir)}, Dir: dir, Err: err}
	}
	return Entry{Record: rec, Dir: dir, Owned: !lockIsFree(dir)}
}

// Reap settles what dead owners left. It removes the VMs that were theirs alone, and
// directories half made or half removed; others that ran it marks as stopped.
// It returns the records of all these VMs as they were.
func (s *Store) Reap(ctx context.Context) ([]Record, error) {
	var crashed []Record
	var doomed []string
	err := s.transition(ctx, func() error {
		dirs, err := s.directories("")
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			rec, err := readRecord(dir)
			if err != nil || !rec.Ephemeral && !rec.Running || !lockIsFree(dir) {
				continue
			}
			if err := bury(dir, rec); err != nil {
				return err
			}
			crashed = append(crashed, rec)
		}
		// Nascent directories exist within a transition only: this one holds the lock, so
		// their maker is dead. Removed ones may be under way; a second remover is harmless.
		for _, prefix := range []string{nascentPrefix, removedPrefix} {
			dirs, err := s.directories(prefix)
			if err != nil {
				return err
			}
			doomed = append(doomed, dirs...)
		}
		return nil
	})
	for _, dir := range doomed {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return crashed, err
}

// bury does what is to be done about a VM whose owner died.
func bury(dir string, rec Record) error {
	if rec.Ephemeral {
		_, err := retire(dir)
		return err
	}
	rec.Running, rec.Interface = false, nil
	return writeRecord(dir, rec)
}

// directories lists the directories of VMs, or those with the prefix of a stage.
func (s *Store) directories(prefix string) ([]string, error) {
	files, err := os.ReadDir(s.vms())
	if err != nil {
		return nil, fmt.Errorf("list VMs: %w", err)
	}
	var dirs []string
	for _, f := range files {
		isVM := CheckName(f.Name()) == nil
		if f.IsDir() && (prefix == "" && isVM || prefix != "" && strings.HasPrefix(f.Name(), prefix)) {
			dirs = append(dirs, filepath.Join(s.vms(), f.Name()))
		}
	}
	return dirs, nil
}

// transition runs f while no other process claims, makes or removes a VM.
func (s *Store) transition(ctx context.Context, f func() error) (err error) {
	lock := flock.New(filepath.Join(s.vms(), ".lock"), flock.SetPermissions(0o600))
	if _, err := lock.TryLockContext(ctx, lockRetry); err != nil {
		return fmt.Errorf("lock data directory: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	return f()
}

func vmLock(dir string) *flock.Flock {
	return flock.New(filepath.Join(dir, "lock"), flock.SetPermissions(0o600))
}

// lockIsFree tells whether no process owns the VM in dir. A lock that cannot be
// tried counts as held.
func lockIsFree(dir string) bool {
	lock := vmLock(dir)
	held, err := lock.TryLock()
	if err != nil || !held {
		return false
	}
	return lock.Close() == nil
}

// retire takes the VM in dir out of sight and returns the directory that is
// left to be removed. The caller is within a transition.
func retire(dir string) (string, error) {
	removed, err := os.MkdirTemp(filepath.Dir(dir), removedPrefix)
	if err != nil {
		return "", fmt.Errorf("remove VM directory: %w", err)
	}
	if err := os.Rename(dir, filepath.Join(removed, filepath.Base(dir))); err != nil {
		return "", errors.Join(fmt.Errorf("remove VM directory: %w", err), os.Remove(removed))
	}
	return removed, nil
}
