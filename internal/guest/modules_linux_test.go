package guest

import (
	"slices"
	"testing"
)

const moduleList = `kernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko kernel/drivers/virtio/virtio.ko
kernel/fs/fuse/fuse.ko:
kernel/fs/overlayfs/overlay.ko.xz: kernel/a.ko.xz kernel/b.ko.xz
`

func TestModuleFiles(t *testing.T) {
	for name, want := range map[string][]string{
		"fuse":     {"kernel/fs/fuse/fuse.ko"},
		"virtiofs": {"kernel/drivers/virtio/virtio.ko", "kernel/fs/fuse/fuse.ko", "kernel/fs/fuse/virtiofs.ko"},
		"overlay":  {"kernel/b.ko.xz", "kernel/a.ko.xz", "kernel/fs/overlayfs/overlay.ko.xz"},
		"fus":      nil,
		"":         nil,
	} {
		if got := moduleFiles([]byte(moduleList), name); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}
