package machine

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/store"
)

// newTestHost returns a host with a data directory of its own, and the directory of the images
// that it shares with others.
func newTestHost(t *testing.T) (h *Host, sharedImages string) {
	t.Helper()
	h, err := NewHost(Options{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	sharedImages = t.TempDir()
	h.images = image.NewStore(image.Options{Dir: h.store.Images(), Shared: []string{sharedImages}, Log: h.opts.Log})
	return h, sharedImages
}

// makeVM makes the record of a VM, which nobody owns.
func makeVM(t *testing.T, h *Host, rec store.Record) {
	t.Helper()
	if err := claimVM(t, h, rec).Release(); err != nil {
		t.Fatal(err)
	}
}

// claimVM makes the record of a VM, which the test owns.
func claimVM(t *testing.T, h *Host, rec store.Record) *store.Claim {
	t.Helper()
	claim, err := h.store.Create(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = claim.Release() })
	return claim
}

// damage makes a VM whose record cannot be read.
func damage(t *testing.T, h *Host, name string) {
	t.Helper()
	makeVM(t, h, store.Record{Name: name})
	if err := os.WriteFile(filepath.Join(h.store.Dir(name), "record.json"), []byte(`{"version":2,"na`), 0o600); err != nil {
		t.Fatal(err)
	}
}

// makeImage puts an image into the store in dir, and makes it the current one of its name.
func makeImage(t *testing.T, dir, name, id string, created time.Time) {
	t.Helper()
	home := filepath.Join(dir, name)
	path := filepath.Join(home, id)
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	about, err := json.Marshal(map[string]any{"id": id, "description": "a fake", "kernel_version": "1.2.3", "created": created})
	if err != nil {
		t.Fatal(err)
	}
	for file, data := range map[string][]byte{"vmlinux": []byte("kernel"), "rootfs.ext4": []byte("filesystem"), "image.json": about} {
		if err := os.WriteFile(filepath.Join(path, file), data, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(home, "current")
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.Symlink(id, link); err != nil {
		t.Fatal(err)
	}
}

// day is some day.
func day(n int) time.Time { return time.Date(2020, 1, n, 0, 0, 0, 0, time.UTC) }
