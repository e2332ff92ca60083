package layer

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/smolvm/smolvm/internal/qcow2"
)

const diskSize = 1 << 20

func overlay(t *testing.T, path, backing, format string) {
	t.Helper()
	if err := (qcow2.Overlay{Size: diskSize, Backing: backing, Format: format}).Create(path); err != nil {
		t.Fatal(err)
	}
}

// freeze makes a disk a layer, and puts an overlay on it in its place.
func freeze(t *testing.T, s *Store, disk string) (layer string) {
	t.Helper()
	layer = s.NewPath()
	if err := errors.Join(Freeze(disk, layer), os.Remove(disk)); err != nil {
		t.Fatal(err)
	}
	overlay(t, disk, layer, qcow2.Qcow2)
	return layer
}

// A layer stays as long as a disk is an overlay on it, or on another that is.
func TestClean(t *testing.T) {
	dir := t.TempDir()
	s := NewStore(filepath.Join(dir, "layers"))
	clean := func(dryRun bool, want ...string) {
		t.Helper()
		removed, err := s.Clean(func() ([]string, error) { return filepath.Glob(filepath.Join(dir, "*.qcow2")) }, dryRun)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, r := range removed {
			names = append(names, r.Name)
			if r.Bytes == 0 {
				t.Errorf("%s takes nothing", r.Name)
			}
		}
		slices.Sort(want)
		if !slices.Equal(names, want) {
			t.Errorf("removed are %v, not %v", names, want)
		}
	}
	clean(false)
	release, err := s.Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	disk, other := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "other.qcow2")
	overlay(t, disk, filepath.Join(dir, "image"), qcow2.Raw)
	lower := freeze(t, s, disk)
	upper := freeze(t, s, disk)
	overlay(t, other, lower, qcow2.Qcow2)
	abandoned := s.NewPath()
	overlay(t, abandoned, lower, qcow2.Qcow2)
	clean(false) // they are held
	release()
	clean(true, filepath.Base(abandoned))
	clean(false, filepath.Base(abandoned))
	if err := os.Remove(disk); err != nil {
		t.Fatal(err)
	}
	clean(false, filepath.Base(upper))
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	clean(false, filepath.Base(lower))
}

// A disk on many layers becomes one on none, with what they all have.
func TestFlatten(t *testing.T) {
	dir := t.TempDir()
	s := NewStore(filepath.Join(dir, "layers"))
	release, err := s.Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	image, disk := filepath.Join(dir, "image"), filepath.Join(dir, "disk.qcow2")
	if err := os.WriteFile(image, bytes.Repeat([]byte("i"), diskSize), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay(t, disk, image, qcow2.Raw)
	const cluster = 64 << 10
	for i := range 3 {
		write := fmt.Sprintf("write -P %#x %d %d", 'a'+i, i*cluster, cluster)
		if out, err := exec.Command("qemu-io", "-f", "qcow2", "-c", write, disk).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		freeze(t, s, disk)
	}
	if depth, err := s.Depth(disk); err != nil || depth != 3 {
		t.Errorf("it is on %d layers, %v", depth, err)
	}
	if err := Flatten(t.Context(), disk, image); err != nil {
		t.Fatal(err)
	}
	if depth, err := s.Depth(disk); err != nil || depth != 0 {
		t.Errorf("then it is on %d layers, %v", depth, err)
	}
	if backing, err := qcow2.Backing(disk); err != nil || backing != image {
		t.Errorf("and on %q, %v", backing, err)
	}
	raw := filepath.Join(dir, "raw")
	if out, err := exec.Command("qemu-img", "convert", "-O", "raw", disk, raw).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[int]byte{0: 'a', cluster: 'b', 2 * cluster: 'c', 3 * cluster: 'i', diskSize - 1: 'i'} {
		if got[at] != want {
			t.Errorf("at %d it has %q, not %q", at, got[at], want)
		}
	}
	if err := Flatten(t.Context(), filepath.Join(dir, "none"), image); err == nil {
		t.Error("one that there is not is flattened")
	}
}

// While it is not known what a disk needs, all stays.
func TestCleanUnsure(t *testing.T) {
	dir := t.TempDir()
	s := NewStore(filepath.Join(dir, "layers"))
	release, err := s.Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release()
	layer := s.NewPath()
	overlay(t, layer, filepath.Join(dir, "image"), qcow2.Raw)
	damaged := filepath.Join(dir, "damaged")
	if err := os.WriteFile(damaged, []byte("no disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	for want, disks := range map[error]func() ([]string, error){
		qcow2.ErrFormat: func() ([]string, error) { return []string{damaged}, nil },
		boom:            func() ([]string, error) { return nil, boom },
	} {
		if _, err := s.Clean(disks, false); !errors.Is(err, want) {
			t.Errorf("%v, not %v", err, want)
		}
		if _, err := os.Stat(layer); err != nil {
			t.Error(err)
		}
	}
	gone := func() ([]string, error) { return []string{filepath.Join(dir, "gone")}, nil }
	if removed, err := s.Clean(gone, false); err != nil || len(removed) != 1 {
		t.Errorf("removed are %v, %v", removed, err)
	}
}

func TestFreezeFails(t *testing.T) {
	dir := t.TempDir()
	if err := Freeze(filepath.Join(dir, "none"), filepath.Join(dir, "layer")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
