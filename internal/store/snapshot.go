package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

var (
	// ErrSnapshotNotFound is wrapped by errors about a snapshot that does not exist.
	ErrSnapshotNotFound = errors.New("snapshot not found")
	// ErrSnapshotExists is wrapped by errors about a snapshot's name that is taken.
	ErrSnapshotExists = errors.New("snapshot already exists")
)

const (
	snapshotFile    = "snapshot.json"
	snapshotVersion = 1
)

// Snapshot is a copy of a VM: its disk and, if it ran, the saved machine, in a directory.
type Snapshot struct {
	Version int       `json:"version"`
	Name    string    `json:"name"`
	VM      string    `json:"vm"` // whose copy it is
	Created time.Time `json:"created"`
	// Running tells that there is a saved machine. Else the copy boots from the disk.
	Running bool `json:"running"`

	Design // the VM's; of Disks none that it could write to

	// Dir is where it is, and Err says why it cannot be read: then only Name is set besides.
	Dir string `json:"-"`
	Err error  `json:"-"`
}

func (s *Store) snapshots() string { return filepath.Join(s.root, "snapshots") }

// SnapshotName makes a name for a snapshot of a VM.
func SnapshotName(vm string, at time.Time) string {
	const stamp = "-20060102-150405"
	return vm[:min(len(vm), maxNameLength-len(stamp))] + at.UTC().Format(stamp)
}

// IsDraft tells whether a directory may be that of a Draft.
func (s *Store) IsDraft(dir string) bool {
	return filepath.Dir(dir) == s.snapshots() && strings.HasPrefix(filepath.Base(dir), nascentPrefix)
}

// Draft is a snapshot in the making, or one that is only made to be copied. It ends with Keep,
// Discard or the process.
type Draft struct {
	Dir   string
	store *Store
	lock  *os.File // of the directory; nobody removes it while it is held
}

// NewDraft makes an empty draft.
func (s *Store) NewDraft(ctx context.Context) (*Draft, error) {
	d := &Draft{store: s}
	err := s.transition(ctx, func() (err error) {
		if err := os.MkdirAll(s.snapshots(), 0o700); err != nil {
			return err
		}
		if d.Dir, err = os.MkdirTemp(s.snapshots(), nascentPrefix); err != nil {
			return err
		}
		d.lock, err = lockDirectory(d.Dir)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make snapshot: %w", err)
	}
	return d, nil
}

// Keep makes the draft, whose files are all there, the snapshot of that name. It fails with
// ErrSnapshotExists if there is one, and with ErrInvalidName.
func (d *Draft) Keep(ctx context.Context, name string) (Snapshot, error) {
	if err := CheckName(name); err != nil {
		return Snapshot{}, err
	}
	var kept Snapshot
	err := d.store.transition(ctx, func() error {
		final := filepath.Join(d.store.snapshots(), name)
		if _, err := os.Lstat(final); err == nil {
			return fmt.Errorf("%w: %q", ErrSnapshotExists, name)
		}
		if err := os.Rename(d.Dir, final); err != nil {
			return fmt.Errorf("keep snapshot: %w", err)
		}
		d.Dir = ""
		kept = readSnapshot(final)
		return kept.Err
	})
	return kept, err
}

// Discard removes the draft, unless it was kept. It is idempotent.
func (d *Draft) Discard() error {
	var err error
	if d.Dir != "" {
		err = os.RemoveAll(d.Dir)
	}
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	d.Dir, d.lock = "", nil
	return err
}

// WriteSnapshot describes the snapshot that is made in dir.
func WriteSnapshot(dir string, snap Snapshot) error {
	snap.Version = snapshotVersion
	data, err := json.MarshalIndent(snap, "", "  ")
	if err == nil {
		err = renameio.WriteFile(filepath.Join(dir, snapshotFile), append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("describe snapshot: %w", err)
	}
	return nil
}

// Snapshot describes the draft, as WriteSnapshot told.
func (d *Draft) Snapshot() (Snapshot, error) {
	snap := readSnapshot(d.Dir)
	return snap, snap.Err
}

// Snapshot returns a snapshot, or ErrSnapshotNotFound.
func (s *Store) Snapshot(ctx context.Context, name string) (Snapshot, error) {
	if err := CheckName(name); err != nil {
		return Snapshot{}, err
	}
	var snap Snapshot
	err := s.transition(ctx, func() error {
		snap = readSnapshot(filepath.Join(s.snapshots(), name))
		return snap.Err
	})
	return snap, err
}

// Snapshots returns all snapshots by name.
func (s *Store) Snapshots(ctx context.Context) ([]Snapshot, error) {
	return s.listSnapshots(ctx, func(name string) bool { return CheckName(name) == nil })
}

// Copies returns all snapshots, and drafts of which something is known already.
func (s *Store) Copies(ctx context.Context) ([]Snapshot, error) {
	all, err := s.listSnapshots(ctx, func(string) bool { return true })
	return slices.DeleteFunc(all, func(snap Snapshot) bool {
		return errors.Is(snap.Err, ErrSnapshotNotFound)
	}), err
}

func (s *Store) listSnapshots(ctx context.Context, want func(name string) bool) ([]Snapshot, error) {
	var all []Snapshot
	err := s.transition(ctx, func() error {
		entries, err := os.ReadDir(s.snapshots())
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		for _, e := range entries {
			if e.IsDir() && want(e.Name()) {
				all = append(all, readSnapshot(filepath.Join(s.snapshots(), e.Name())))
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	return all, nil
}

// RemoveSnapshot removes a snapshot, even a damaged one. Its copies stay. It fails with
// ErrSnapshotNotFound.
func (s *Store) RemoveSnapshot(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	var removed string
	err := s.transition(ctx, func() (err error) {
		dir := filepath.Join(s.snapshots(), name)
		if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: %q", ErrSnapshotNotFound, name)
		}
		removed, err = retire(dir)
		return err
	})
	if err != nil {
		return err
	}
	return os.RemoveAll(removed)
}

// readSnapshot reads the description of the snapshot in dir. The caller is within a transition.
func readSnapshot(dir string) Snapshot {
	name := filepath.Base(dir)
	data, err := os.ReadFile(filepath.Join(dir, snapshotFile))
	var snap Snapshot
	switch {
	case errors.Is(err, os.ErrNotExist):
		if _, dirErr := os.Stat(dir); dirErr == nil && CheckName(name) == nil {
			err = fmt.Errorf("%w: snapshot %q has no description", ErrDamaged, name)
			break
		}
		err = fmt.Errorf("%w: %q", ErrSnapshotNotFound, name)
	case err == nil:
		if err = json.Unmarshal(data, &snap); err == nil && snap.Version != snapshotVersion {
			err = fmt.Errorf("version %d is not known to this program", snap.Version)
		}
		if err != nil {
			err = fmt.Errorf("%w: snapshot %q: %w", ErrDamaged, name, err)
		}
	}
	if err != nil {
		return Snapshot{Name: name, Dir: dir, Err: err}
	}
	snap.Name, snap.Dir = name, dir
	return snap
}

// abandonedDrafts lists drafts whose makers are dead, and what they did not finish removing. The
// caller is within a transition.
func (s *Store) abandonedDrafts() ([]string, error) {
	entries, err := os.ReadDir(s.snapshots())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var abandoned []string
	for _, e := range entries {
		dir := filepath.Join(s.snapshots(), e.Name())
		switch {
		case strings.HasPrefix(e.Name(), removedPrefix):
			abandoned = append(abandoned, dir)
		case strings.HasPrefix(e.Name(), nascentPrefix):
			lock, err := lockDirectory(dir)
			if err != nil {
				continue // it is being made, or gone
			}
			abandoned = append(abandoned, dir)
			_ = lock.Close() // nothing was written to it
		}
	}
	return abandoned, nil
}

// lockDirectory takes the lock of a directory. The error is unix.EWOULDBLOCK if somebody else
// holds it.
func lockDirectory(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written to it
		return nil, err
	}
	return f, nil
}
