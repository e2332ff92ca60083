// Package store is the data directory: a directory for each VM with its record
// and its lock, beside the images. Whoever holds a VM's lock owns the VM;
// a lock ends with its process, so what a dead owner left is always seen.
package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/filelock"
)

var (
	// ErrNotFound is wrapped by errors about a VM that does not exist.
	ErrNotFound = errors.New("VM not found")
	// ErrExists is wrapped by errors about a VM name that is taken.
	ErrExists = errors.New("VM already exists")
	// ErrDamaged is wrapped by errors about a VM whose record cannot be read.
	ErrDamaged = errors.New("VM record is damaged")
	// ErrInUse is wrapped by errors about a VM that another process owns.
	ErrInUse = errors.New("VM is in use by another process")
)

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
		return nil, s.notWritable(err)
	}
	for _, dir := range []string{s.vms(), s.Cache(), s.Keys()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, s.notWritable(err)
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

// Layers is the path of the directory for what several disks are overlays on.
func (s *Store) Layers() string { return filepath.Join(s.root, "layers") }

// Keys is the path of the directory for the user's SSH key.
func (s *Store) Keys() string { return filepath.Join(s.root, "ssh") }

// Dir is the path of the directory of the VM of that name.
func (s *Store) Dir(name string) string { return filepath.Join(s.vms(), name) }

func (s *Store) vms() string { return filepath.Join(s.root, "vms") }

// Create makes the VM's directory with its record and claims it. It fails with
// ErrExists if the name is taken and ErrInvalidName if it is no name.
func (s *Store) Create(ctx context.Context, rec Record) (*Claim, error) {
	if err := CheckName(rec.Name); err != nil {
		return nil, err
	}
	var claim *Claim
	err := s.transition(ctx, func() error {
		final := s.Dir(rec.Name)
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
		claim, err = s.claim(s.Dir(name))
		return err
	})
	return claim, err
}

// Inherit makes the caller the VM's owner in place of the process that made it start, by
// Claim.Lock of which it got lock. It takes the file over if it succeeds.
func (s *Store) Inherit(ctx context.Context, name string, lock *os.File) (*Claim, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	var claim *Claim
	err := s.transition(ctx, func() error {
		dir := s.Dir(name)
		rec, err := readRecord(dir)
		if err != nil {
			return err
		}
		given, err := lock.Stat()
		if err != nil {
			return fmt.Errorf("inherit VM: %w", err)
		}
		if own, err := os.Lstat(filepath.Join(dir, lockFile)); err != nil || !os.SameFile(own, given) {
			return fmt.Errorf("inherit VM: the file is not the lock of %q", name)
		}
		// It is held already, or else free.
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return fmt.Errorf("inherit VM: %w", err)
		}
		claim, err = s.newClaim(dir, lock, rec)
		return err
	})
	return claim, err
}

// claim takes the lock of the VM in dir, and then reads what the last owner wrote. The caller is
// within a transition.
func (s *Store) claim(dir string) (*Claim, error) {
	name := filepath.Base(dir)
	lock, lockErr := tryLock(filepath.Join(dir, lockFile))
	rec, err := readRecord(dir)
	var c *Claim
	switch {
	case errors.Is(err, os.ErrNotExist):
		err = fmt.Errorf("%w: %q", ErrNotFound, name)
	case err != nil:
	case errors.Is(lockErr, unix.EWOULDBLOCK):
		err = fmt.Errorf("%w: %q belongs to process %d", ErrInUse, name, rec.OwnerPID)
	case lockErr != nil:
		err = fmt.Errorf("lock VM %q: %w", name, lockErr)
	default:
		c, err = s.newClaim(dir, lock, rec)
	}
	if err != nil && lock != nil {
		err = errors.Join(err, lock.Close())
	}
	return c, err
}

// newClaim notes who the owner is now.
func (s *Store) newClaim(dir string, lock *os.File, rec Record) (*Claim, error) {
	c := &Claim{store: s, dir: dir, lock: lock, rec: rec}
	if rec.OwnerPID == os.Getpid() {
		return c, nil
	}
	err := c.Update(func(r *Record) { r.OwnerPID = os.Getpid() })
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		// It is for people only. Who has no space left must still be able to remove VMs.
		err = nil
	}
	return c, err
}

// Discard removes a VM whose record cannot be read, so that nobody can own it. It fails with
// ErrInUse while somebody who could read it still does, or its monitor lives.
func (s *Store) Discard(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	dir, removed := s.Dir(name), ""
	err := s.transition(ctx, func() (err error) {
		if _, err := readRecord(dir); !errors.Is(err, ErrDamaged) {
			return fmt.Errorf("discard VM %q: its record is not damaged", name)
		}
		if isHeld(dir, lockFile) || isHeld(dir, runLockFile) {
			return fmt.Errorf("%w: %q", ErrInUse, name)
		}
		removed, err = retire(dir)
		return err
	})
	if err != nil {
		return err
	}
	return os.RemoveAll(removed)
}

// Disks lists the disks, and what may become one, in the directories of VMs and snapshots, those
// too that are being made.
func (s *Store) Disks() ([]string, error) {
	var disks []string
	for _, parent := range []string{s.vms(), s.snapshots()} {
		dirs, err := os.ReadDir(parent)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list disks: %w", err)
		}
		for _, dir := range dirs {
			files, err := os.ReadDir(filepath.Join(parent, dir.Name()))
			if err != nil {
				continue // it is gone, or no directory
			}
			for _, f := range files {
				if strings.HasSuffix(f.Name(), diskSuffix) {
					disks = append(disks, filepath.Join(parent, dir.Name(), f.Name()))
				}
			}
		}
	}
	return disks, nil
}

// RunLockPath is the path of the file of Claim.RunLock of the VM of that name.
func (s *Store) RunLockPath(name string) string { return filepath.Join(s.Dir(name), runLockFile) }

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
	lock, err := filelock.Take(ctx, filepath.Join(s.vms(), ".lock"))
	switch {
	case errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES):
		return s.notWritable(err)
	case err != nil:
		return fmt.Errorf("lock data directory: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	return f()
}

// Writable tells why the data directory cannot be written, if that is so. Without it no VM can
// be dealt with.
func (s *Store) Writable() error {
	if err := unix.Access(s.vms(), unix.W_OK); err != nil {
		return s.notWritable(err)
	}
	return nil
}

// notWritable is the error of a data directory that cannot be used.
func (s *Store) notWritable(err error) error {
	return fmt.Errorf("data directory %s cannot be written, choose another with --data-dir or SMOLVM_DATA_DIR: %w", s.root, err)
}

// retire takes the VM in dir out of sight and returns the directory that is
// left to be removed. It takes no space, so that it works on a full disk. The caller is within
// a transition.
func retire(dir string) (string, error) {
	removed := filepath.Join(filepath.Dir(dir), removedPrefix+rand.Text())
	if err := os.Rename(dir, removed); err != nil {
		return "", fmt.Errorf("remove VM directory: %w", err)
	}
	return removed, nil
}
