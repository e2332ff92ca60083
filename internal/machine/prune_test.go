package machine

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smolvm/smolvm/internal/guestbin"
	"github.com/smolvm/smolvm/internal/store"
)

// pruned is what was pruned, each as "kind name id".
func pruned(t *testing.T, h *Host, opts PruneOptions) (things []string, err error) {
	t.Helper()
	list, err := h.Prune(t.Context(), opts)
	things = []string{}
	for _, p := range list {
		things = append(things, strings.TrimSpace(p.Kind+" "+p.Name+" "+p.ID))
		if p.Bytes < 4096 {
			t.Errorf("%+v takes next to nothing", p)
		}
	}
	return things, err
}

// fakeGuest makes a guest program that nobody starts.
func fakeGuest(t *testing.T) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "guest")
	if err := os.WriteFile(path, []byte("\x7fELF"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(guestbin.PathVariable, path)
}

// remaining are the names of the VMs and images that there are.
func remaining(t *testing.T, h *Host) (names []string) {
	t.Helper()
	entries, err := h.store.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name)
	}
	versions, err := h.images.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range versions {
		names = append(names, v.Name+"/"+v.ID)
	}
	return names
}

func TestPrune(t *testing.T) {
	fakeGuest(t)
	h, shared := newTestHost(t)
	images := h.store.Images()
	makeImage(t, images, "mine", "1", day(1))
	makeImage(t, images, "mine", "2", day(2))
	makeImage(t, images, "mine", "3", day(3))
	makeImage(t, images, "old", "1", day(1))
	makeImage(t, images, "open", "1", day(1))
	makeImage(t, shared, "debian", "1", day(1))
	disk, err := os.Open(filepath.Join(images, "open", "1", "rootfs.ext4"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close() //nolint:errcheck // only open

	makeVM(t, h, store.Record{Name: "created", Design: store.Design{Image: "mine", ImageID: "2"}})
	makeVM(t, h, store.Record{Name: "stopped", Design: store.Design{Image: "old", ImageID: "1"}, Started: day(1)})
	makeVM(t, h, store.Record{Name: "crashed", Design: store.Design{Image: "old", ImageID: "1"}, Run: &store.Run{}})
	claimVM(t, h, store.Record{Name: "owned", Design: store.Design{Image: "mine", ImageID: "1"}})
	orphan := claimVM(t, h, store.Record{Name: "orphan", Design: store.Design{Image: "debian", ImageID: "1"}, Run: &store.Run{Detached: true}})
	run, err := orphan.RunLock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close() //nolint:errcheck // only held
	if err := orphan.Release(); err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(images, ".initrd", "00.cpio")
	if err := errors.Join(os.Mkdir(filepath.Dir(initrd), 0o755), os.WriteFile(initrd, []byte("initrd"), 0o444), os.Chtimes(initrd, day(1), day(1))); err != nil {
		t.Fatal(err)
	}

	all := remaining(t, h)
	vms := []string{"vm crashed", "vm created", "vm stopped"}
	unused := []string{"image mine 3"}
	left := []string{"leftover images/.initrd/00.cpio"}
	for _, c := range []struct {
		opts PruneOptions
		want []string
	}{
		{PruneOptions{DryRun: true, KeepVMs: true}, slices.Concat(unused, left)},
		{PruneOptions{DryRun: true, KeepImages: true}, vms},
		{PruneOptions{DryRun: true, KeepImages: true, KeepVMs: true}, []string{}},
		{PruneOptions{DryRun: true}, slices.Concat(vms, []string{"image mine 2", "image mine 3", "image old 1"}, left)},
	} {
		if got, err := pruned(t, h, c.opts); err != nil {
			t.Error(err)
		} else if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%+v: %s", c.opts, diff)
		}
		if diff := cmp.Diff(all, remaining(t, h)); diff != "" {
			t.Errorf("%+v changed something: %s", c.opts, diff)
		}
	}
	// One that was started since it was looked at is spared.
	if err := h.pruneVM(t.Context(), "orphan"); !errors.Is(err, store.ErrInUse) {
		t.Errorf("a VM that lives on: %v", err)
	}
	// The real one does just what it told.
	told, err := pruned(t, h, PruneOptions{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	done, err := pruned(t, h, PruneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(told, done); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"orphan", "owned", "debian/1", "mine/1", "open/1"}, remaining(t, h)); diff != "" {
		t.Error(diff)
	}
	if img, err := h.images.Get("mine"); err != nil || img.ID != "1" {
		t.Errorf("the name means %v, %v, not the version that is left", img, err)
	}
	if again, err := h.Prune(t.Context(), PruneOptions{}); err != nil || again == nil || len(again) != 0 {
		t.Errorf("a second time: %v, %v", again, err)
	}
}

// TestPruneGoesOn shows that what cannot be removed does not stop the rest.
func TestPruneGoesOn(t *testing.T) {
	fakeGuest(t)
	h, _ := newTestHost(t)
	makeImage(t, h.store.Images(), "mine", "1", day(1))
	makeVM(t, h, store.Record{Name: "stopped", Design: store.Design{Image: "mine", ImageID: "1"}, Started: time.Now()})
	damage(t, h, "broken")
	for _, dryRun := range []bool{true, false} {
		got, err := pruned(t, h, PruneOptions{DryRun: dryRun})
		if !errors.Is(err, ErrImageInUse) || !strings.Contains(err.Error(), "record.json") {
			t.Errorf("dry run %v: %v", dryRun, err)
		}
		if diff := cmp.Diff([]string{"vm stopped"}, got); diff != "" {
			t.Error(diff)
		}
	}
	if diff := cmp.Diff([]string{"broken", "mine/1"}, remaining(t, h)); diff != "" {
		t.Error(diff)
	}
}
