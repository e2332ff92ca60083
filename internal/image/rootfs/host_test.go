package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func command(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

const sparseAt = 20<<20 + 100

func makeSparse(t testing.TB, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	_, writeErr := f.WriteAt([]byte("data"), sparseAt)
	_, endErr := f.WriteAt([]byte("end"), size-3)
	if err := errors.Join(writeErr, endErr, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func sparseData(size int64) string {
	return strings.Repeat("\x00", sparseAt) + "data" + strings.Repeat("\x00", int(size)-sparseAt-4-3) + "end"
}

// must fails the test on the first error.
func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// A directory of the host is what it was, in a filesystem.
func TestFromDir(t *testing.T) {
	dir := t.TempDir() + "/src"
	const size = 30 << 20
	must(t, os.MkdirAll(dir+"/d/e", 0o755), os.WriteFile(dir+"/file", []byte("file"), 0o640), os.Link(dir+"/file", dir+"/d/link"),
		os.Symlink("../../../../etc/passwd", dir+"/d/out"), os.Symlink("nowhere", dir+"/dangling"), os.Link(dir+"/dangling", dir+"/d/dangling"),
		unix.Mkfifo(dir+"/fifo", 0o600), os.Chmod(dir+"/d", os.ModeSticky|0o777), os.WriteFile(dir+"/empty", nil, 0o400),
		unix.Setxattr(dir+"/file", "user.comment", []byte("c"), 0))
	makeSparse(t, dir+"/sparse", size)
	if os.Geteuid() == 0 {
		must(t, unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mknod(dir+"/disk", unix.S_IFBLK|0o600, int(unix.Mkdev(259, 300))),
			os.Lchown(dir+"/dangling", 1234, 5678), os.Chown(dir+"/d/e", 70000, 80000),
			unix.Setxattr(dir+"/d", "trusted.x", []byte("directory"), 0))
	}
	listener, err := net.Listen("unix", dir+"/socket")
	must(t, err)
	defer listener.Close()
	must(t, os.Chtimes(dir+"/file", moment, moment), os.Chtimes(dir, moment, moment))
	tree, err := FromDir(t.Context(), dir, Limits{})
	must(t, err)
	consistent(t, tree)
	got := written(t, tree, 64<<20)
	matches(t, tree, got)
	checkSparse(t, got["sparse"], size)
	if n := got["file"]; n.SHA256 != sum("file") || n.Links != 2 || got["d/link"].Inode != n.Inode || n.Extended["user.comment"] != "c" || !n.Modified.Equal(moment) {
		t.Errorf("the file is %+v", n)
	}
	if n := got["dangling"]; n.Target != "nowhere" || n.Links != 2 || os.Geteuid() == 0 && (n.UID != 1234 || n.GID != 5678) {
		t.Errorf("the link is %+v", n)
	}
	if n := got["."]; !n.Modified.Equal(moment) {
		t.Errorf("the root is %+v", n)
	}
	if _, found := got["socket"]; found {
		t.Error("there is a socket")
	}
	if os.Geteuid() == 0 && (got["null"].Device != "1:3" || got["disk"].Device != "259:300" || got["d/e"].UID != 70000 || got["d"].Extended["trusted.x"] != "directory") {
		t.Errorf("got %+v, %+v, %+v and %+v", got["null"], got["disk"], got["d/e"], got["d"])
	}
	if _, err := FromDir(t.Context(), dir+"/none", Limits{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := FromDir(t.Context(), dir, Limits{Entries: 5}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too many files: %v", err)
	}
	if _, err := FromDir(t.Context(), dir, Limits{Bytes: 1000}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large files: %v", err)
	}
}

// What happens to files after they were seen is noticed, and leads nowhere else.
func TestFromChangingDir(t *testing.T) {
	for name, change := range map[string]func(file string) error{
		"grows":    func(file string) error { return os.Truncate(file, 100) },
		"shrinks":  func(file string) error { return os.Truncate(file, 1) },
		"vanishes": os.Remove,
		"is another": func(file string) error {
			return errors.Join(os.WriteFile(file+"2", []byte("data"), 0o600), os.Rename(file+"2", file))
		},
		"is a link": func(file string) error { return errors.Join(os.Remove(file), os.Symlink("/etc/passwd", file)) },
		"is a pipe": func(file string) error { return errors.Join(os.Remove(file), unix.Mkfifo(file, 0o600)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.Mkdir(dir+"/src", 0o755), os.WriteFile(dir+"/src/file", []byte("data"), 0o600))
			tree, err := FromDir(t.Context(), dir+"/src", Limits{})
			must(t, err)
			if err := tree.WriteExt4(t.Context(), dir+"/good", options(t, 16<<20)); err != nil {
				t.Fatal(err)
			}
			must(t, change(dir+"/src/file"))
			if err := tree.WriteExt4(t.Context(), dir+"/bad", options(t, 16<<20)); err == nil {
				t.Error("it is not noticed")
			}
			if _, err := os.Lstat(dir + "/bad"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("left behind: %v", err)
			}
		})
	}
}

// The caller may look into a tree and add to it.
func TestEdit(t *testing.T) {
	modules := t.TempDir()
	must(t, os.MkdirAll(modules+"/6.1/kernel", 0o755), os.WriteFile(modules+"/6.1/kernel/net.ko", []byte("module"), 0o644),
		os.WriteFile(modules+"/file", []byte("file"), 0o600), os.Symlink("6.1", modules+"/now"))
	tree, err := read(t, []item{
		dir("etc"), file("etc/passwd", "root:x:0:0"), symlink("etc/os-release", "../usr/lib/os-release"), file("usr/lib/os-release", "ID=test"),
		file("usr/share/doc/far", "far away"), symlink("lib", "usr/lib"), symlink("etc/resolv.conf", "/run/resolv.conf"), dir("usr/lib/modules/6.1"),
		symlink("loop", "loop"), file("usr/lib/modules/file", "old"), symlink("etc/out", "../../../../etc/passwd"),
	})
	must(t, err)
	for path, want := range map[string]string{"etc/passwd": "root:x:0:0", "/etc/os-release": "ID=test", "usr/share/doc/far": "far away", "etc/out": "root:x:0:0"} {
		if got, err := tree.ReadFile(t.Context(), path); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	for path, want := range map[string]error{
		"none": fs.ErrNotExist, "etc/passwd/x": syscall.ENOTDIR, "loop": syscall.ELOOP, "etc": syscall.EISDIR, "etc/resolv.conf": fs.ErrNotExist,
	} {
		if _, err := tree.ReadFile(t.Context(), path); !errors.Is(err, want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if info, err := tree.Lookup("/lib/os-release"); err != nil || !info.IsRegular() || info.Size != 7 || info.Mode != 0o100644 {
		t.Errorf("got %+v, %v", info, err)
	}
	if info, err := tree.LookupLink("lib"); err != nil || info.Target != "usr/lib" || info.IsDir() {
		t.Errorf("got %+v, %v", info, err)
	}
	if info, err := tree.Lookup("lib"); err != nil || !info.IsDir() {
		t.Errorf("got %+v, %v", info, err)
	}
	must(t, tree.Mkdir("proc", 0o555), tree.Mkdir("etc", 0o777), tree.WriteFile("etc/resolv.conf", 0o644, []byte("nameserver")),
		tree.WriteFile("lib/new/deep", 0o4755, []byte("deep")), tree.Symlink("/proc/mounts", "etc/mtab"), tree.WriteFile("etc/passwd", 0o600, []byte("other")),
		tree.AddDir(t.Context(), modules, "/lib/modules"))
	consistent(t, tree)
	for path, want := range map[string]string{"etc/passwd": "other", "usr/lib/new/deep": "deep", "lib/modules/now/kernel/net.ko": "module"} {
		if got, err := tree.ReadFile(t.Context(), path); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	for name, err := range map[string]error{
		"a directory over a file": tree.Mkdir("etc/passwd", 0o755), "a file over a directory": tree.WriteFile("etc", 0o644, nil),
		"out of the root": tree.WriteFile("../x", 0o644, nil), "the root": tree.Symlink("x", "/"), "no target": tree.Symlink("", "x"),
		"below a file": tree.WriteFile("etc/passwd/x", 0o644, nil), "a negative size": tree.WriteFileFrom("x", 0o644, -1, nil),
		"into a file": tree.AddDir(t.Context(), modules, "etc/passwd"), "from nowhere": tree.AddDir(t.Context(), modules+"/none", "x"),
	} {
		if err == nil {
			t.Errorf("%s: it can be", name)
		}
	}
	got := written(t, tree, 32<<20)
	matches(t, tree, got)
	for name, want := range map[string]string{"etc/resolv.conf": "nameserver", "usr/lib/modules/6.1/kernel/net.ko": "module", "usr/lib/modules/file": "file", "etc/passwd": "other"} {
		if got[name].SHA256 != sum(want) {
			t.Errorf("%s has other contents", name)
		}
	}
	if n := got["etc"]; n.Mode != 0o040700 {
		t.Errorf("etc became %o", n.Mode)
	}
	if n := got["usr/lib/new/deep"]; n.Mode != 0o104755 || n.UID != 0 || !n.Modified.Equal(time.Unix(0, 0)) {
		t.Errorf("got %+v", n)
	}
}

// as calls a function as another user. The goroutine must end then: its thread stays that user's.
func as(uid, gid int, f func() error) error {
	runtime.LockOSThread()
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
		return errno
	}
	return f()
}

// What others own stays theirs, and what is ours becomes root's, unless we are root.
func TestOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755), os.WriteFile(dir+"/ours", nil, 0o644), os.WriteFile(dir+"/theirs", nil, 0o644),
		os.Chown(dir+"/ours", 4321, 4322), os.Chown(dir+"/theirs", 5, 6))
	tree, err := FromDir(t.Context(), dir, Limits{})
	must(t, err)
	if info, err := tree.Lookup("ours"); err != nil || fmt.Sprint(info.UID, info.GID) != "4321 4322" {
		t.Errorf("for root: %+v, %v", info, err)
	}
	done := make(chan error)
	go func() {
		done <- as(4321, 4322, func() error {
			tree, err = FromDir(t.Context(), dir, Limits{})
			return err
		})
	}()
	must(t, <-done)
	for name, want := range map[string]string{"ours": "0 0", "theirs": "5 6"} {
		if info, err := tree.Lookup(name); err != nil || fmt.Sprint(info.UID, info.GID) != want {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
}
