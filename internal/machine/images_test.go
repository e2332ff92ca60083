package machine

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/store"
)

// wantImages checks what Images tells, each as "name/id current shared vms".
func wantImages(t *testing.T, h *Host, want ...string) {
	t.Helper()
	infos, err := h.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, i := range infos {
		line := []string{i.Name + "/" + i.ID}
		if i.Current {
			line = append(line, "current")
		}
		if i.Shared {
			line = append(line, "shared")
		}
		got = append(got, strings.Join(append(line, i.VMs...), " "))
		if i.Size < 3*4096 || i.Description != "a fake" || i.Kernel != "1.2.3" || i.Created.IsZero() || i.Dir == "" || i.VMs == nil {
			t.Errorf("%+v", i)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestImages(t *testing.T) {
	h, shared := newTestHost(t)
	if infos, err := h.Images(t.Context()); err != nil || infos == nil || len(infos) != 0 {
		t.Errorf("no images: %v, %v", infos, err)
	}
	makeImage(t, h.store.Images(), "mine", "1", day(1))
	makeImage(t, h.store.Images(), "mine", "2", day(2))
	makeImage(t, shared, "debian", "3", day(3))
	makeVM(t, h, store.Record{Name: "a", Design: store.Design{Image: "mine", ImageID: "1"}})
	makeVM(t, h, store.Record{Name: "b", Design: store.Design{Image: "mine", ImageID: "1"}})
	makeVM(t, h, store.Record{Name: "c", Design: store.Design{Image: "debian", ImageID: "3"}})
	wantImages(t, h, "debian/3 current shared c", "mine/2 current", "mine/1 a b")

	info, err := h.Pull(t.Context(), "debian")
	if err != nil || info.ID != "3" || !info.Shared || !info.Current || !slices.Equal(info.VMs, []string{"c"}) {
		t.Errorf("Pull: %+v, %v", info, err)
	}
	if _, err := h.Pull(t.Context(), "127.0.0.1:1/unknown"); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("Pull of what cannot be made: %v", err)
	}
	if _, err := h.BuildImage(t.Context(), "new", BuildOptions{Packages: []string{"-o"}}); !errors.Is(err, ErrInvalidOption) {
		t.Errorf("BuildImage with no package: %v", err)
	}
	if _, err := h.BuildImage(t.Context(), "New", BuildOptions{}); !errors.Is(err, image.ErrInvalidName) {
		t.Errorf("BuildImage with no name: %v", err)
	}
	// One that is damaged is no image; the others are.
	if err := os.Remove(filepath.Join(h.store.Images(), "mine", "2", "vmlinux")); err != nil {
		t.Fatal(err)
	}
	wantImages(t, h, "debian/3 current shared c", "mine/1 a b")
}

func TestRemoveImage(t *testing.T) {
	h, shared := newTestHost(t)
	makeImage(t, h.store.Images(), "mine", "1", day(1))
	makeImage(t, h.store.Images(), "mine", "2", day(2))
	makeImage(t, shared, "debian", "3", day(3))
	claim := claimVM(t, h, store.Record{Name: "a", Design: store.Design{Image: "mine", ImageID: "1"}})
	for name, want := range map[string]error{"mine": ErrImageInUse, "debian": ErrImageShared, "unknown": image.ErrNotFound, "../x": image.ErrInvalidName} {
		if err := h.RemoveImage(t.Context(), name); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if err := h.RemoveImage(t.Context(), "mine"); !strings.Contains(err.Error(), "by a;") {
		t.Errorf("the error does not name the VM: %v", err)
	}
	wantImages(t, h, "debian/3 current shared", "mine/2 current", "mine/1 a")

	// Nobody's VM is made on it, but somebody has it open.
	if err := claim.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	disk, err := os.Open(filepath.Join(h.store.Images(), "mine", "1", "rootfs.ext4"))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.RemoveImage(t.Context(), "mine"); !errors.Is(err, ErrImageInUse) {
		t.Errorf("an image that is open: %v", err)
	}
	if err := disk.Close(); err != nil {
		t.Fatal(err)
	}

	// It is not known what a VM is made on.
	damage(t, h, "broken")
	if err := h.RemoveImage(t.Context(), "mine"); !errors.Is(err, ErrImageInUse) || !strings.Contains(err.Error(), "broken") {
		t.Errorf("with an unreadable record: %v", err)
	}
	wantImages(t, h, "debian/3 current shared", "mine/2 current", "mine/1")
	if err := os.RemoveAll(h.store.Dir("broken")); err != nil {
		t.Fatal(err)
	}
	if err := h.RemoveImage(t.Context(), "mine"); err != nil {
		t.Error(err)
	}
	wantImages(t, h, "debian/3 current shared")
}
