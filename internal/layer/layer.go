// Package layer keeps the lower parts of disks: files that several disks are overlays on, and that
// nobody writes to any more. A disk becomes a layer when its VM is copied; the VM goes on with an
// overlay on it, and so do the copies.
package layer

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/diskusage"
	"github.com/smolvm/smolvm/internal/qcow2"
)

const (
	lockFile = ".lock"
	suffix   = ".qcow2"
)

// Store is a directory of layers. Its methods may be called concurrently, by several processes
// too.
type Store struct{ dir string }

// NewStore returns the store in dir, which is made when it is needed.
func NewStore(dir string) *Store { return &Store{dir} }

// Hold keeps layers from being removed until release is called: whoever makes an overlay on one
// holds them until the overlay can be found.
func (s *Store) Hold(ctx context.Context) (release func(), err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of layers: %w", err)
	}
	lock := s.lock()
	// It is only busy while unused layers are removed.
	if err := lock.RLock(); err != nil {
		return nil, fmt.Errorf("lock layers: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return func() { _ = lock.Close() }, nil // nothing is written to it
}

func (s *Store) lock() *flock.Flock {
	return flock.New(filepath.Join(s.dir, lockFile), flock.SetPermissions(0o600))
}

// NewPath returns the path that a new layer is to have. The caller holds the layers.
func (s *Store) NewPath() string {
	return filepath.Join(s.dir, strings.ToLower(rand.Text())+suffix)
}

// Removed is a layer that Clean removes.
type Removed struct {
	Name  string // in the store's directory
	Bytes int64  // what it takes of the host's disk
}

// Clean removes the layers that no disk is an overlay on, nor an overlay on an overlay, and so on.
// disks lists all disks there are; a disk may be gone by the time it is looked at. With dryRun it only tells.
// While somebody holds layers it does nothing.
func (s *Store) Clean(disks func() ([]string, error), dryRun bool) ([]Removed, error) {
	removed, err := s.clean(disks, dryRun)
	if err != nil {
		return removed, fmt.Errorf("remove unused layers: %w", err)
	}
	return removed, nil
}

func (s *Store) clean(disks func() ([]string, error), dryRun bool) ([]Removed, error) {
	all, err := s.list()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	lock := s.lock()
	defer lock.Close() //nolint:errcheck // nothing is written to it
	if free, err := lock.TryLock(); err != nil || !free {
		return nil, err
	}
	if all, err = s.list(); err != nil {
		return nil, err
	}
	users, err := disks()
	if err != nil {
		return nil, err
	}
	used := make(map[string]bool)
	for _, disk := range users {
		// A chain of layers ends with an image.
		for path := disk; ; {
			next, err := qcow2.Backing(path)
			if errors.Is(err, os.ErrNotExist) {
				break
			}
			if err != nil {
				return nil, err // who knows what it needs
			}
			if filepath.Dir(next) != s.dir || used[next] {
				break
			}
			used[next], path = true, next
		}
	}
	var removed []Removed
	for _, path := range all {
		if used[path] {
			continue
		}
		size, err := diskusage.Of(path)
		if err == nil && !dryRun {
			err = os.Remove(path)
		}
		if err != nil {
			return removed, err
		}
		removed = append(removed, Removed{filepath.Base(path), size})
	}
	return removed, nil
}

// list lists the layers' paths.
func (s *Store) list() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) {
			paths = append(paths, filepath.Join(s.dir, e.Name()))
		}
	}
	return paths, nil
}

// Depth counts the layers that a disk is on.
func (s *Store) Depth(disk string) (int, error) {
	for depth, path := 0, disk; ; depth++ {
		next, err := qcow2.Backing(path)
		if err != nil {
			return 0, err
		}
		if filepath.Dir(next) != s.dir {
			return depth, nil
		}
		path = next
	}
}

// Flatten makes a disk that nobody uses an overlay on the image alone: what its layers have, it
// has then itself. If it fails, or is broken off, the disk is as good as before.
func Flatten(ctx context.Context, disk, image string) error {
	cmd := exec.CommandContext(ctx, "qemu-img", "rebase", "-f", qcow2.Qcow2, "-F", qcow2.Raw, "-b", image, disk)
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("flatten disk: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// Freeze makes the disk a layer at path, which NewPath returned: another name of the same file,
// which must not be written to any more. The disk's own name can be removed then.
func Freeze(disk, path string) error {
	if err := os.Link(disk, path); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
			err = fmt.Errorf("the data directory's filesystem has no hard links: %w", err)
		}
		return fmt.Errorf("make disk a layer: %w", err)
	}
	return nil
}
