package saved

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/smolvm/smolvm/internal/bootid"
)

// save makes a saved machine whose memory holds a word.
func save(t *testing.T, word string) (dir string) {
	t.Helper()
	d := NewDraft(t.TempDir())
	d.Shape.Machine = "round"
	// As a guest's memory is: some data, and a large hole.
	memory, err := os.Create(d.Memory)
	if err == nil {
		_, err = memory.WriteAt([]byte(word), 1<<20)
		err = errors.Join(err, memory.Truncate(64<<20), memory.Close())
	}
	err = errors.Join(err,
		os.WriteFile(d.State, []byte("state"), 0o600), os.WriteFile(d.Disk, []byte("disk"), 0o600),
		os.WriteFile(d.Console, []byte("log"), 0o600),
		os.WriteFile(filepath.Join(d.Dir, "qemu.log"), []byte("gone"), 0o600), d.Seal(), Fingerprint(t.Context(), d.Dir), Sync(d.Dir))
	if err != nil {
		t.Fatal(err)
	}
	return d.Dir
}

// want wants a saved machine with that word in its memory.
func want(t *testing.T, dir, word string, disk bool) {
	t.Helper()
	m, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	wantWord(t, m, word)
	if m.Shape.Machine != "round" || (m.Disk != nil) != disk {
		t.Errorf("shape %v, disk %v", m.Shape, m.Disk)
	}
	from, err := m.From()
	if err != nil || string(from.Console) != "log" {
		t.Errorf("console %q, %v", from.Console, err)
	}
}

func wantWord(t *testing.T, m *Machine, word string) {
	t.Helper()
	b := make([]byte, len(word))
	if _, err := m.Memory.ReadAt(b, 1<<20); err != nil || string(b) != word {
		t.Errorf("the memory holds %q, %v, not %q", b, err, word)
	}
}

func TestSeal(t *testing.T) {
	dir := save(t, "one")
	want(t, dir, "one", true)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 5 {
		t.Errorf("there are %v, %v, not four files and the manifest", entries, err)
	}
	if err := NewDraft(t.TempDir()).Seal(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing is sealed: %v", err)
	}
	if _, err := Open(t.Context(), filepath.Join(dir, "no")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing is opened: %v", err)
	}
}

// What is shared is there for as long as one of those who share it is.
func TestShare(t *testing.T) {
	dir := save(t, "one")
	to := t.TempDir()
	if err := Share(dir, to); err != nil {
		t.Fatal(err)
	}
	if err := Share(dir, to); !errors.Is(err, os.ErrExist) {
		t.Errorf("the second time: %v", err)
	}
	want(t, dir, "one", true)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	want(t, to, "one", false)
	if err := Share(dir, t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is gone is shared: %v", err)
	}
}

// TestDamaged damages a saved machine in every way that is to be noticed before it is used.
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
			dir := save(t, "one")
			want(t, dir, "one", true)
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(t.Context(), dir); !errors.Is(err, ErrDamaged) {
				t.Error(err)
			}
		})
	}
}

// TestAfterReboot has a good one looked at in full once, and then no more.
func TestAfterReboot(t *testing.T) {
	dir := save(t, "one")
	if err := changeManifest(dir, func(m *manifest) { m.Checked = "before" }); err != nil {
		t.Fatal(err)
	}
	want(t, dir, "one", true)
	boot, err := bootid.Read()
	if err != nil {
		t.Fatal(err)
	}
	if err := changeManifest(dir, func(m *manifest) {
		if m.Checked != boot {
			t.Errorf("checked in boot %q, not %q", m.Checked, boot)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// One of which it is not known what it holds is as good as any, until the host has booted again.
func TestNoFingerprint(t *testing.T) {
	dir := save(t, "one")
	err := changeManifest(dir, func(m *manifest) {
		for name, f := range m.Files {
			f.SHA256 = ""
			m.Files[name] = f
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	want(t, dir, "one", true)
	if err := changeManifest(dir, func(m *manifest) { m.Checked = "before" }); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), dir); !errors.Is(err, ErrDamaged) {
		t.Error(err)
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
