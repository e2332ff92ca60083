package template

import (
	"context"
	"encoding/json"
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

	"github.com/smolvm/smolvm/internal/bootid"
)

const key = "0123"

func testStore(t *testing.T) *Store {
	t.Helper()
	return NewStore(filepath.Join(t.TempDir(), "templates"), slog.New(slog.DiscardHandler))
}

// maker makes templates whose memory holds a word, and counts them.
type maker struct {
	word string
	made atomic.Int32
}

func (m *maker) make(d *Draft) error {
	m.made.Add(1)
	// As a guest's memory is: some data, and a large hole.
	memory, err := os.Create(d.Memory)
	if err == nil {
		_, err = memory.WriteAt([]byte(m.word), 1<<20)
		err = errors.Join(err, memory.Truncate(64<<20), memory.Close())
	}
	return errors.Join(err,
		os.WriteFile(d.State, []byte("state"), 0o600), os.WriteFile(d.Disk, []byte("disk"), 0o600),
		os.WriteFile(filepath.Join(d.Dir, consoleFile), []byte("log"), 0o600),
		os.WriteFile(filepath.Join(d.Dir, "qemu.log"), []byte("gone"), 0o600))
}

func (m *maker) get(t *testing.T, s *Store) *Template {
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
func (m *maker) want(t *testing.T, s *Store, word string, made int32) *Template {
	t.Helper()
	got := m.get(t, s)
	wantWord(t, got, word)
	if n := m.made.Load(); n != made {
		t.Errorf("%d were made, not %d", n, made)
	}
	return got
}

func wantWord(t *testing.T, got *Template, word string) {
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

// TestDamaged damages a template in every way that it can be noticed before it is used, and
// wants a new one.
func TestDamaged(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"memory truncated": func(dir string) error { return os.Truncate(filepath.Join(dir, memoryFile), 100) },
		"memory missing":   func(dir string) error { return os.Remove(filepath.Join(dir, memoryFile)) },
		"state written": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, stateFile), []byte("statf"), 0o600)
		},
		"disk is a link": func(dir string) error {
			disk := filepath.Join(dir, diskFile)
			return errors.Join(os.Remove(disk), os.Symlink("/etc/passwd", disk))
		},
		"manifest cut": func(dir string) error { return os.Truncate(filepath.Join(dir, manifestFile), 20) },
		"manifest gone": func(dir string) error {
			return os.Remove(filepath.Join(dir, manifestFile))
		},
		"of the future": func(dir string) error {
			return changeManifest(dir, func(m *manifest) { m.Version++ })
		},
		"not written out when the host went down": func(dir string) error {
			return errors.Join(damageQuietly(filepath.Join(dir, memoryFile)), changeManifest(dir, func(m *manifest) { m.Checked = "before" }))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, m := testStore(t), &maker{word: "one"}
			old := m.want(t, s, "one", 1)
			if err := damage(s.path(key)); err != nil {
				t.Fatal(err)
			}
			m.word = "two"
			m.want(t, s, "two", 2)
			if name == "manifest gone" { // and nothing else
				wantWord(t, old, "one")
			}
		})
	}
}

// TestAfterReboot has a good template looked at in full once, and then no more.
func TestAfterReboot(t *testing.T) {
	s, m := testStore(t), &maker{word: "one"}
	m.want(t, s, "one", 1)
	if err := changeManifest(s.path(key), func(m *manifest) { m.Checked = "before" }); err != nil {
		t.Fatal(err)
	}
	m.want(t, s, "one", 1)
	boot, err := bootid.Read()
	if err != nil {
		t.Fatal(err)
	}
	if err := changeManifest(s.path(key), func(m *manifest) {
		if m.Checked != boot {
			t.Errorf("checked in boot %q, not %q", m.Checked, boot)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// damageQuietly changes what a file holds and nothing else.
func damageQuietly(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("x"), 2<<20)
	return errors.Join(err, f.Close(), os.Chtimes(path, info.ModTime(), info.ModTime()))
}

func changeManifest(dir string, change func(*manifest)) error {
	path := filepath.Join(dir, manifestFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return err
	}
	change(&m)
	if data, err = json.Marshal(m); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
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
	fails := func(d *Draft) error {
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
	if _, err := s.Get(ctx, "other", func() {}, func(*Draft) error { cancel(); return ctx.Err() }); !errors.Is(err, context.Canceled) {
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
	next, err := s.Get(t.Context(), "next", func() {}, func(d *Draft) error {
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
