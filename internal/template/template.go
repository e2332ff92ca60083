// Package template keeps machines that have booted and have no identity yet, so that others
// go on from there instead of booting.
//
// A template never changes. It is made under a lock, appears whole or not at all, and is
// checked before it is used: its files' sizes and times every time, what they hold once
// after each boot of the host, when they come from the disk anyway.
package template

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/smolvm/smolvm/internal/diskusage"
	"github.com/smolvm/smolvm/internal/saved"
)

const (
	nascentPrefix = ".new-"
	removedPrefix = ".removed-"
	lockSuffix    = ".lock"
	failedSuffix  = ".failed"

	// lockRetry is how often a busy lock is tried again. It guards work of seconds.
	lockRetry = 20 * time.Millisecond
	// unusedFor is how long a template that nobody uses is kept.
	unusedFor = 7 * 24 * time.Hour
	// failedFor is how long one that could not be made is not tried again.
	failedFor = 10 * time.Minute
)

// ErrNotMade is wrapped by errors about a template that could not be made a moment ago, and is
// not tried again yet.
var ErrNotMade = errors.New("template could not be made")

// Store is a directory of templates. Its methods may be called concurrently, by several
// processes too.
type Store struct {
	dir string
	log *slog.Logger
}

// NewStore returns the store in dir, which is made when it is needed.
func NewStore(dir string, log *slog.Logger) *Store { return &Store{dir, log} }

// Get returns the template with that key, which names all that it depends on. If there is none,
// or it is damaged, make makes the files of a draft. waits is called if another process is making
// it at the moment. After a failure the error wraps ErrNotMade for some minutes. The caller owes a
// Close.
func (s *Store) Get(ctx context.Context, key string, waits func(), make func(*saved.Draft) error) (*saved.Machine, error) {
	t, err := s.find(ctx, key)
	if t != nil || err != nil {
		return t, err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of templates: %w", err)
	}
	lock := flock.New(s.path(key)+lockSuffix, flock.SetPermissions(0o600))
	defer lock.Close() //nolint:errcheck // nothing is written to it
	if free, err := lock.TryLock(); err != nil {
		return nil, fmt.Errorf("lock template: %w", err)
	} else if !free {
		waits()
		if _, err := lock.TryLockContext(ctx, lockRetry); err != nil {
			return nil, fmt.Errorf("wait for template: %w", err)
		}
	}
	if t, err := s.find(ctx, key); t != nil || err != nil {
		return t, err
	}
	t, err = s.make(ctx, key, make)
	if err == nil || ctx.Err() != nil {
		return t, err
	}
	// Its maker boots a machine for nothing each time.
	if noteErr := os.WriteFile(s.path(key)+failedSuffix, []byte(err.Error()), 0o600); noteErr != nil {
		s.log.Debug("could not note that a template failed", "error", noteErr)
	}
	return nil, err
}

// find returns the template if there is a good one. A nil one without an error is to be made.
func (s *Store) find(ctx context.Context, key string) (*saved.Machine, error) {
	t, err := saved.Open(ctx, s.path(key))
	switch {
	case err == nil:
		now := time.Now()
		_ = os.Chtimes(s.path(key), now, now) // one that seems old is made again when it is needed
		return t, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case !errors.Is(err, os.ErrNotExist):
		s.log.Warn("template is made anew", "reason", err)
		return nil, nil
	}
	failed := s.path(key) + failedSuffix
	if info, err := os.Stat(failed); err == nil && time.Since(info.ModTime()) < failedFor {
		why, _ := os.ReadFile(failed)
		return nil, fmt.Errorf("%w: %s", ErrNotMade, why)
	}
	return nil, nil
}

// make makes a template. The caller has the lock.
func (s *Store) make(ctx context.Context, key string, make func(*saved.Draft) error) (_ *saved.Machine, err error) {
	s.removeOld()
	d := saved.NewDraft(filepath.Join(s.dir, nascentPrefix+key))
	// What is there was left by a process that died.
	if err := errors.Join(os.RemoveAll(d.Dir), os.RemoveAll(s.path(key)+failedSuffix)); err != nil {
		return nil, fmt.Errorf("make template: %w", err)
	}
	if err := os.Mkdir(d.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make template: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("make template: %w", errors.Join(err, os.RemoveAll(d.Dir)))
		}
	}()
	if err := make(d); err != nil {
		return nil, err
	}
	if err := d.Seal(); err != nil {
		return nil, err
	}
	if err := saved.Fingerprint(ctx, d.Dir); err != nil {
		return nil, err
	}
	if err := s.Remove(key); err != nil { // one that is damaged
		return nil, err
	}
	if err := os.Rename(d.Dir, s.path(key)); err != nil {
		return nil, err
	}
	return saved.Open(ctx, s.path(key))
}

// Remove removes a template. Machines that were started from it run on.
func (s *Store) Remove(key string) error {
	if err := s.remove(key); err != nil {
		return fmt.Errorf("remove template: %w", err)
	}
	return nil
}

// Removed is what Prune removes: a template, or what is left of one that was never finished.
type Removed struct {
	Name  string // in the store's directory
	Bytes int64  // what it takes of the disk
}

// Prune removes what nobody is making at the moment, and tells what that is. With dryRun it only
// tells.
func (s *Store) Prune(dryRun bool) ([]Removed, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	var removed []Removed
	var errs []error
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		r, err := s.prune(e.Name(), dryRun)
		errs = append(errs, err)
		if r != nil {
			removed = append(removed, *r)
		}
	}
	return removed, errors.Join(errs...)
}

func (s *Store) prune(name string, dryRun bool) (*Removed, error) {
	if !strings.HasPrefix(name, removedPrefix) {
		key, _ := strings.CutPrefix(name, nascentPrefix)
		lock := flock.New(s.path(key)+lockSuffix, flock.SetPermissions(0o600))
		defer lock.Close() //nolint:errcheck // nothing is written to it
		if free, err := lock.TryLock(); !free || err != nil {
			return nil, err
		}
	}
	size, err := diskusage.Of(s.path(name))
	if err == nil && !dryRun {
		err = s.remove(name)
	}
	if err != nil {
		return nil, fmt.Errorf("remove template: %w", err)
	}
	return &Removed{name, size}, nil
}

// remove removes a directory in such a way that nobody finds half of it.
func (s *Store) remove(name string) error {
	doomed := filepath.Join(s.dir, removedPrefix+rand.Text())
	if err := os.Rename(s.path(name), doomed); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return os.RemoveAll(doomed)
}

func (s *Store) path(key string) string { return filepath.Join(s.dir, key) }

// removeOld removes templates that nobody has used for long, and what killed processes did not
// finish removing. That it fails is no reason not to make another.
func (s *Store) removeOld() {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() || time.Since(info.ModTime()) < unusedFor && !strings.HasPrefix(e.Name(), removedPrefix) {
			continue
		}
		if err := s.remove(e.Name()); err != nil {
			s.log.Debug("could not remove an old template", "error", err)
		}
	}
}
