package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smolvm/smolvm/internal/image/ext4/ext4test"
	"github.com/smolvm/smolvm/internal/image/rootfs"
)

// diskOf makes a VM's disk on an image, and changes it with commands of debugfs.
func diskOf(t *testing.T, img *Image, commands string) Disk {
	t.Helper()
	raw, path := filepath.Join(t.TempDir(), "raw"), filepath.Join(t.TempDir(), "disk")
	program(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", img.RootFS, raw)
	feed(t, commands, "debugfs", "-w", "-f", "-", raw)
	program(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
	return Disk{VM: "web", Path: path, Base: img}
}

// nodesOf returns a tree of an image.
func nodesOf(t *testing.T, img *Image) *rootfs.Tree {
	t.Helper()
	file, err := os.Open(img.RootFS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	tree, err := rootfs.FromExt4(t.Context(), file, img.RootFSSize, rootfs.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// identity makes a directory with files that tell a VM from others, and some that do not, and returns
// commands of debugfs that put them onto a disk.
func identity(t *testing.T) (commands string) {
	t.Helper()
	dir := t.TempDir()
	made := map[string]bool{}
	for i, file := range []struct{ path, text string }{
		{"etc/machine-id", "0123\n"},
		{"etc/hostname", "web\n"},
		{"etc/resolv.conf", "nameserver 192.0.2.1\n"},
		{"etc/hosts", "127.0.0.1\tlocalhost # smolvm\n192.0.2.7\tmine\n127.0.1.1\tweb # smolvm\n"},
		{"etc/ssh/ssh_host_rsa_key", "secret"},
		{"etc/ssh/sshd_config", "kept"},
		{"var/lib/dbus/machine-id", "0123\n"},
		{"tmp/file", "gone"},
		{"run/file", "gone"},
		{"srv/file", "kept"},
	} {
		for at := strings.Index(file.path, "/"); at > 0; {
			if parent := file.path[:at]; !made[parent] {
				made[parent] = true
				commands += "mkdir " + parent + "\n"
			}
			next := strings.Index(file.path[at+1:], "/")
			if next < 0 {
				break
			}
			at += 1 + next
		}
		source := filepath.Join(dir, string(rune('a'+i)))
		if err := os.WriteFile(source, []byte(file.text), 0o644); err != nil {
			t.Fatal(err)
		}
		commands += "write " + source + " " + file.path + "\n"
	}
	return commands + "sif srv/file uid 1000\nea_set srv/file security.capability abc\n"
}

func TestCommit(t *testing.T) {
	s := baseStore(t, true)
	base, err := s.Ensure(t.Context(), Default, PullMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	base.Config = Config{Cmd: []string{"old"}, Env: []string{"A=1"}}
	base.Env = append([]string{standardPath}, base.Config.Env...)
	disk := diskOf(t, base, identity(t))
	opts := CommitOptions{Changes: []string{"ENV B=2", "WORKDIR /data/in"}, Message: "it works"}
	img, err := s.Commit(t.Context(), "ghcr.io/team/web:1", disk, opts, nil)
	if err != nil {
		t.Fatal(err)
	}
	ext4test.Check(t, img.RootFS)
	if img.Name != "ghcr.io/team/web:1" || img.From != "vm:web" || img.Message != "it works" || img.KernelVersion != base.KernelVersion ||
		strings.Join(img.Env, " ") != standardPath+" A=1 B=2" || strings.Join(img.Config.Cmd, " ") != "old" || img.Config.WorkingDir != "/data/in" {
		t.Errorf("got %+v", img)
	}
	tree := nodesOf(t, img)
	for path, want := range map[string]string{
		"etc/machine-id": "", "etc/hostname": "", "etc/resolv.conf": "", "etc/hosts": "192.0.2.7\tmine\n",
		"etc/ssh/sshd_config": "kept", "srv/file": "kept", "lib/modules/1.2.3/modules.dep": "dependencies",
	} {
		if got, err := tree.ReadFile(t.Context(), path); err != nil || string(got) != want {
			t.Errorf("%s has %q, not %q, %v", path, got, want, err)
		}
	}
	for _, path := range []string{"etc/ssh/ssh_host_rsa_key", "var/lib/dbus/machine-id", "tmp/file", "run/file"} {
		if _, err := tree.Lookup(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there, %v", path, err)
		}
	}
	if dir, err := tree.Lookup("data/in"); err != nil || !dir.IsDir() {
		t.Errorf("there is no working directory: %v", err)
	}
	if info, err := tree.Lookup("srv/file"); err != nil || info.UID != 1000 {
		t.Errorf("the file is %+v, %v", info, err)
	}
	again, err := s.Commit(t.Context(), "again", disk, opts, nil)
	if err != nil || again.ID != img.ID {
		t.Errorf("the same disk made %+v, %v", again, err)
	}
	for _, bad := range []struct {
		name string
		opts CommitOptions
		want error
	}{{Default, opts, ErrInvalidName}, {"-", opts, ErrInvalidName}, {"bad", CommitOptions{Changes: []string{"RUN x"}}, ErrChange}} {
		if _, err := s.Commit(t.Context(), bad.name, disk, bad.opts, nil); !errors.Is(err, bad.want) {
			t.Errorf("%s: %v", bad.name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = s.Commit(ctx, "given-up", disk, opts, func(p Progress) {
		if p.Stage == stageWrite {
			cancel()
		}
	})
	if _, there := os.Stat(filepath.Join(s.dir, "given-up")); !errors.Is(err, context.Canceled) || !errors.Is(there, os.ErrNotExist) {
		t.Errorf("given up: %v, and it left something: %v", err, there)
	}
}
