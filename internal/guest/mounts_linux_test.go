package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMounts(t *testing.T) { runHelper(t, "mounts") }

// The root changes as at boot, with a tmpfs in place of the disk.
func helpMounts() error {
	root, err := os.MkdirTemp("", "root")
	if err != nil {
		return err
	}
	if err := unix.Mount("disk", root, "tmpfs", 0, ""); err != nil {
		return err
	}
	old, err := os.MkdirTemp("", "old")
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		return err
	}
	if err := switchRoot(root, []string{old}); err != nil {
		return err
	}
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the old root is still there: %v", err)
	}
	// A test has no devtmpfs of its own: late mounts must not reach the host's /dev.
	if err := unix.Mount("dev", "/dev", "tmpfs", 0, ""); err != nil {
		return err
	}
	if err := errors.Join(mountAll("/", lateMounts()), deviceLinks("/dev"), directories("/"), directories("/"), deviceLinks("/dev")); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for _, m := range append(earlyMounts()[1:], lateMounts()...) {
		if !strings.Contains(string(table), " "+m.target+" "+m.kind+" ") {
			return fmt.Errorf("%s is not mounted:\n%s", m.target, table)
		}
	}
	for path, mode := range map[string]os.FileMode{
		"/tmp": os.ModeDir | os.ModeSticky | 0o777, "/dev/shm": os.ModeDir | os.ModeSticky | 0o777,
		"/run": os.ModeDir | 0o755, "/root": os.ModeDir | 0o700,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			return fmt.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if target, err := os.Readlink("/dev/stdout"); err != nil || target != "fd/1" {
		return fmt.Errorf("/dev/stdout: %q, %v", target, err)
	}
	return nil
}

func TestMountAllTellsEveryError(t *testing.T) {
	dir := t.TempDir()
	err := mountAll(dir, []mount{{"a", "/one", "no-such-fs", 0, "", 0o755}, {"b", "/two", "no-such-fs", 0, "", 0o755}})
	if err == nil || !strings.Contains(err.Error(), "/one") || !strings.Contains(err.Error(), "/two") || !errors.Is(err, unix.ENODEV) {
		t.Errorf("got %v", err)
	}
}

func TestLoadModules(t *testing.T) {
	dir := t.TempDir()
	list := filepath.Join(dir, "modules.list")
	if err := loadModules(list); err != nil {
		t.Errorf("without a list: %v", err)
	}
	bad := filepath.Join(dir, "bad.ko")
	if err := errors.Join(os.WriteFile(bad, []byte("no module"), 0o644), os.WriteFile(list, []byte(bad+"\n/no/such.ko\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := loadModules(list); err == nil || !strings.Contains(err.Error(), bad) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestFindPort(t *testing.T) {
	sys := t.TempDir()
	if _, err := findPort(sys, "wanted"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without ports: %v", err)
	}
	for port, name := range map[string]string{"vport0p1": "other\n", "vport0p2": "wanted\n"} {
		dir := filepath.Join(sys, "class/virtio-ports", port)
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "name"), []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if port, err := findPort(sys, "wanted"); err != nil || port != "vport0p2" {
		t.Errorf("got %q, %v", port, err)
	}
}
