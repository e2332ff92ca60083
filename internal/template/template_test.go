package template

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/saved"
)

const (
	key        = "0123"
	memoryFile = "memory"
)

func testStore(t *testing.T) *Store {
	t.Helper()
	return NewStore(filepath.Join(t.TempDir(), "templates"), slog.New(slog.DiscardHandler))
}

// maker makes templates whose memory holds a word, and counts them.
type maker struct {
	word string
	made atomic.Int32
}

func (m *maker) make(d *saved.Draft) error {
	m.made.Add(1)
	// As a guest's memory is: some data, and a large hole.
	memory, err := os.Create(d.Memory)
	if err == nil {
		_, err = memory.WriteAt([]byte(m.word), 1<<20)
		err = errors.Join(err, memory.Truncate(64<<20), memory.Close())
	}
	return errors.Join(err,
		os.WriteFile(d.State, []byte("state"), 0o600), os.WriteFile(d.Disk, []byte("disk"), 0o600),
		os.WriteFile(d.Console, []byte("log"), 0o600),
		os.WriteFile(filepath.Join(d.Dir, "qemu.log"), []byte("gone"), 0o600))
}

func (m *maker) get(t *testing.T, s *Store) *saved.Machine {
	t.Helper()
	got, err := s.Get(t.Context(), key, func() {}, m.make)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := got.Close(); err != nil {
			t.Error(err)
		}
	})
	return got
}

// want wants a template with that word in its memory, and how many were made.
func (m *maker) want(t *testing.T, s *Store, word string, made int32) *saved.Machine {
	t.Helper()
	got := m.get(t, s)
	wantWord(t, got, word)
	if n := m.made.Load(); n != made {
		t.Errorf("%d were made, not %d", n, made)
	}
	return got
}

func wantWord(t *testing.T, got *saved.Machine, word string) {
	t.Helper()
	b := make([]byte, len(word))
	if _, err := got.Memory.ReadAt(b, 1<<20); err != nil || string(b) != word {
		t.Errorf("the memory holds %q, %v, not %q", b, err, word)
	}
}

func TestMadeOnce(t *testing.T) {
	s, m := testStore(t), &maker{word: "one"}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() { m.get(t, s) })
	}
	all.Wait()
	m.want(t, s, "one", 1)
	entries, err := os.ReadDir(s.path(key))
	if err != nil || len(entries) != 5 {
		t.Errorf("there are %v, %v, not four files and the manifest", entries, err)
	}
}

// TestDamaged damages a template and wants a new one.
func TestDamaged(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"memory truncated": func(dir string) error { return os.Truncate(filepath.Join(dir, memoryFile), 100) },
		"everything gone but one": func(dir string) error {
			return errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, memoryFile), nil, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, m := testStore(t), &maker{word: "one"}
			m.want(t, s, "one", 1)
			if err := damage(s.path(key)); err != nil {
				t.Fatal(err)
			}
			m.word = "two"
			m.want(t, s, "two", 2)
		})
	}
}

// TestReplaced replaces a template while it is open.
func TestReplaced(t *testing.T) {
	s, m := testStore(t), &maker{word: "one"}
	old := m.want(t, s, "one", 1)
	if err := s.Remove(key); err != nil {
		t.Fatal(err)
	}
	m.word = "two"
	m.want(t, s, "two", 2)
	wantWord(t, old, "one")
	if state, err := io.ReadAll(old.State); err != nil || string(state) != "state" {
		t.Errorf("the old state is %q, %v", state, err)
	}
}

func TestFailed(t *testing.T) {
	s := testStore(t)
	calls := 0
	fails := func(d *saved.Draft) error {
		calls++
		return errors.Join(os.WriteFile(d.Memory, []byte("half"), 0o600), errors.New("no room"))
	}
	if _, err := s.Get(t.Context(), key, func() {}, fails); err == nil || errors.Is(err, ErrNotMade) || !strings.Contains(err.Error(), "no room") {
		t.Errorf("the first time: %v", err)
	}
	if _, err := s.Get(t.Context(), key, func() {}, fails); !errors.Is(err, ErrNotMade) || !strings.Contains(err.Error(), "no room") {
		t.Errorf("the second time: %v", err)
	}
	if calls != 1 {
		t.Errorf("it was tried %d times", calls)
	}
	long := time.Now().Add(-failedFor)
	if err := os.Chtimes(s.path(key)+failedSuffix, long, long); err != nil {
		t.Fatal(err)
	}
	m := &maker{word: "one"}
	m.want(t, s, "one", 1)

	// Who gives up has not failed.
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := s.Get(ctx, "other", func() {}, func(*saved.Draft) error { cancel(); return ctx.Err() }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := os.Stat(s.path("other") + failedSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is noted as failed: %v", err)
	}
}

// TestLeftovers has what a killed maker left be replaced, what nobody used for long removed,
// and prune the rest, but for what is being made.
func TestLeftovers(t *testing.T) {
	s, m := testStore(t), &maker{word: "one"}
	if err := os.MkdirAll(s.path(nascentPrefix+key), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path(nascentPrefix+key+"/"+memoryFile), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.want(t, s, "one", 1)
	old := time.Now().Add(-unusedFor - time.Hour)
	if err := os.Chtimes(s.path(key), old, old); err != nil {
		t.Fatal(err)
	}
	next, err := s.Get(t.Context(), "next", func() {}, func(d *saved.Draft) error {
		if _, err := os.Stat(s.path(key)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the old one is there: %v", err)
		}
		if removed, err := s.Prune(false); err != nil || len(removed) != 0 {
			t.Errorf("while one is made, %v is removed: %v", removed, err)
		}
		return m.make(d)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	for _, dryRun := range []bool{true, false} {
		removed, err := s.Prune(dryRun)
		if err != nil || len(removed) != 1 || removed[0].Name != "next" || removed[0].Bytes == 0 {
			t.Errorf("removed are %v, %v", removed, err)
		}
	}
	if removed, err := s.Prune(false); err != nil || len(removed) != 0 {
		t.Errorf("then %v are left, %v", removed, err)
	}
}
