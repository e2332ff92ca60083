package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ulikunitz/xz"
)

// fakeModule returns an ELF object whose only contents are a .modinfo section.
func fakeModule(info string) []byte {
	const headerSize, sectionSize = 64, 64
	names := "\x00.modinfo\x00.shstrtab\x00"
	le := binary.LittleEndian
	data := make([]byte, headerSize)
	copy(data, "\x7fELF\x02\x01\x01")
	le.PutUint16(data[16:], 1)  // relocatable
	le.PutUint16(data[18:], 62) // x86-64
	le.PutUint32(data[20:], 1)
	infoAt := len(data)
	data = append(data, info...)
	namesAt := len(data)
	data = append(data, names...)
	le.PutUint64(data[40:], uint64(len(data)))
	le.PutUint16(data[52:], headerSize)
	le.PutUint16(data[58:], sectionSize)
	le.PutUint16(data[60:], 3)
	le.PutUint16(data[62:], 2) // the section with the names
	section := func(name, kind uint32, at, size int) {
		s := make([]byte, sectionSize)
		le.PutUint32(s, name)
		le.PutUint32(s[4:], kind)
		le.PutUint64(s[24:], uint64(at))
		le.PutUint64(s[32:], uint64(size))
		data = append(data, s...)
	}
	section(0, 0, 0, 0)
	section(1, 1, infoAt, len(info))
	section(10, 3, namesAt, len(names))
	return data
}

// modulesDir makes a directory of modules: names of files to their .modinfo.
func modulesDir(t *testing.T, builtin string, files map[string][]byte) *Modules {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(builtin), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		path := filepath.Join(dir, "kernel", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m, err := OpenModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestCheckVersion(t *testing.T) {
	m := modulesDir(t, "", map[string][]byte{
		"a.ko": fakeModule("depends=b\x00vermagic=6.1.0-1 SMP mod_unload \x00"), "b.ko": fakeModule("depends=\x00"),
		"c.ko": fakeModule("depends=\x00vermagic=6.2 SMP\x00"),
	})
	order, err := m.LoadOrder("a", "c")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.CheckVersion("6.1.0-1", "a", "b"); err != nil {
		t.Error(err)
	}
	if err := m.CheckVersion("6.1.0-1", order...); !errors.Is(err, ErrUnsuitable) || !strings.Contains(err.Error(), "module c is for Linux 6.2") {
		t.Errorf("got %v", err)
	}
}

func TestLoadOrder(t *testing.T) {
	m := modulesDir(t, "kernel/fs/ext4.ko\nkernel/lib/built-in.ko\n", map[string][]byte{
		"net/virtio-net.ko":         fakeModule("license=GPL\x00depends=virtio_ring,virtio,net-failover,built_in\x00"),
		"net/net_failover.ko":       fakeModule("depends=\x00softdep=pre: crc-fast absent post: late\x00"),
		"virtio/virtio.ko.gz":       packGzip(t, fakeModule("depends=virtio_ring\x00")),
		"virtio/virtio_ring.ko.zst": packZstd(t, fakeModule("depends=\x00")),
		"lib/crc_fast.ko.xz":        packXZPlain(t, fakeModule("depends=\x00")),
		"lib/late.ko":               fakeModule("depends=\x00"),
		"lib/broken.ko":             fakeModule("depends=nowhere\x00"),
		"lib/loop_a.ko":             fakeModule("depends=loop_b\x00"),
		"lib/loop_b.ko":             fakeModule("depends=loop_a\x00"),
		"lib/garbage.ko":            []byte("garbage"),
		"lib/README":                []byte("no module"),
	})
	order, err := m.LoadOrder("virtio_net", "ext4", "virtio")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"virtio_ring", "virtio", "crc_fast", "net_failover", "virtio_net"}
	if diff := cmp.Diff(want, order); diff != "" {
		t.Error(diff)
	}
	for name, want := range map[string]error{"missing": ErrNoModule, "broken": ErrNoModule, "garbage": ErrFormat} {
		if _, err := m.LoadOrder(name); !errors.Is(err, want) {
			t.Errorf("LoadOrder(%q): %v, want %v", name, err, want)
		}
	}
	if _, err := m.LoadOrder("loop_a"); err != nil {
		t.Errorf("a circle: %v", err)
	}
	if got := m.Available("ext4", "late", "missing"); !cmp.Equal(got, []string{"late"}) {
		t.Errorf("Available: %q", got)
	}
	if got := m.Below("kernel/net"); !cmp.Equal(got, []string{"net_failover", "virtio_net"}) {
		t.Errorf("Below: %q", got)
	}
	if file, ok := m.File("virtio_net"); !ok || file != "kernel/net/virtio-net.ko" {
		t.Errorf("File: %q, %v", file, ok)
	}
	data, err := m.Read("virtio")
	if err != nil || !bytes.HasPrefix(data, []byte("\x7fELF")) {
		t.Errorf("Read of a compressed module: %.4q, %v", data, err)
	}
}

func TestOpenModulesRefuses(t *testing.T) {
	if _, err := OpenModules(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func FuzzRequirements(f *testing.F) {
	f.Add(fakeModule("depends=a,b\x00softdep=pre: c post: d\x00"))
	f.Fuzz(func(_ *testing.T, module []byte) {
		_, _ = parseRequirements(module)
	})
}

// packXZPlain packs as modules are, without a filter.
func packXZPlain(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
