package share

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// No name leads out of the folder.
func TestNames(t *testing.T) {
	w := newWorld(t)
	put(t, filepath.Join(w.folder, "ok"), "ok")
	k := mount(t, w.folder, false)
	k.lookup(rootNode, "ok")
	for _, name := range []string{"..", ".", "", "../outside/secret", "/etc/passwd", "a/b", "ok/"} {
		k.fails(unix.EINVAL, opLookup, rootNode, names(name))
		k.fails(unix.EINVAL, opCreate, rootNode, u32s(unix.O_RDWR, 0o600, 0, 0), names(name))
		k.fails(unix.EINVAL, opMkdir, rootNode, u32s(0o700, 0), names(name))
		k.fails(unix.EINVAL, opMknod, rootNode, u32s(unix.S_IFREG, 0, 0, 0), names(name))
		k.fails(unix.EINVAL, opSymlink, rootNode, names(name, "x"))
		k.fails(unix.EINVAL, opLink, rootNode, u64s(rootNode), names(name))
		k.fails(unix.EINVAL, opUnlink, rootNode, names(name))
		k.fails(unix.EINVAL, opRmdir, rootNode, names(name))
		k.fails(unix.EINVAL, opRename, rootNode, u64s(rootNode), names(name, "x"))
		k.fails(unix.EINVAL, opRename, rootNode, u64s(rootNode), names("ok", name))
		k.fails(unix.EINVAL, opRename2, rootNode, u64s(rootNode), u32s(0, 0), names("ok", name))
	}
	k.fails(unix.EINVAL, opLookup, rootNode, []byte("ok")) // without an end
	k.fails(unix.ENAMETOOLONG, opLookup, rootNode, names(strings.Repeat("x", maxName+1)))
	root := open(t, w.folder)
	for _, name := range []string{"..", "../outside/secret", "/etc/passwd"} {
		// The system would open it, and the second guard stops it too.
		fd, err := unix.Openat(root, name, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		unix.Close(fd)
		if _, _, err := openEntry(root, name); !errors.Is(err, unix.EXDEV) {
			t.Errorf("opened %s: %v", name, err)
		}
	}
}

func open(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// A link is never followed, by whomever it was made.
func TestLinks(t *testing.T) {
	w := newWorld(t)
	k := mount(t, w.folder, false)
	if err := os.Symlink("../outside", filepath.Join(w.folder, "hosts")); err != nil {
		t.Fatal(err)
	}
	k.must(opSymlink, rootNode, names("guests", "../outside"))
	k.must(opSymlink, rootNode, names("file", "../outside/secret"))
	for _, name := range []string{"hosts", "guests"} {
		if got := get(t, filepath.Join(w.folder, name, "secret")); got != "secret" { // who follows it gets there
			t.Errorf("%s: %q", name, got)
		}
		link := k.lookup(rootNode, name)
		k.fails(unix.ENOTDIR, opLookup, link.node, names("secret"))
		k.fails(unix.ENOTDIR, opOpendir, link.node, u32s(0, 0))
		k.fails(unix.ENOTDIR, opMkdir, link.node, u32s(0o700, 0), names("dir"))
		k.fails(unix.ENOTDIR, opUnlink, link.node, names("secret"))
		k.fails(unix.ENOTDIR, opRename, link.node, u64s(rootNode), names("secret", "stolen"))
	}
	file := k.lookup(rootNode, "file")
	k.fails(unix.EACCES, opOpen, file.node, u32s(unix.O_RDONLY, 0))
	k.fails(unix.EINVAL, opSetattr, file.node, setattrBody(setSize, 0, 0, 0, 0, 0))
	k.fails(unix.EEXIST, opCreate, rootNode, u32s(unix.O_WRONLY|unix.O_TRUNC, 0o600, 0, 0), names("file"))
	k.must(opSetattr, file.node, setattrBody(setMtime, 0, 0, 0, 0, 0)) // the link's
	if info, err := os.Stat(filepath.Join(w.outside, "secret")); err != nil || time.Since(info.ModTime()) > time.Hour {
		t.Errorf("its time was changed: %v, %v", info.ModTime(), err)
	}
	if got := get(t, filepath.Join(w.outside, "secret")); got != "secret" {
		t.Errorf("it was changed to %q", got)
	}
}

// swapTime is how long it is tried to be in the right moment.
const swapTime = 400 * time.Millisecond

// A directory that becomes a link while it is walked leads nowhere. A server that looks before it
// opens is fooled by the same.
func TestSwap(t *testing.T) {
	w := newWorld(t)
	dir, link := filepath.Join(w.folder, "dir"), filepath.Join(w.folder, "link")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Symlink("../outside", link)); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "secret"), "public")
	stop := make(chan struct{})
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
		}
	})
	defer swapping.Wait()
	defer close(stop)
	k := mount(t, w.folder, false)
	fooled, seen := 0, 0
	for end := time.Now().Add(swapTime); time.Now().Before(end) || fooled == 0 || seen == 0; {
		if info, err := os.Lstat(dir); err == nil && info.IsDir() {
			if data, err := os.ReadFile(filepath.Join(dir, "secret")); err == nil && string(data) == "secret" {
				fooled++
			}
		}
		got, err := k.call(opLookup, rootNode, names("dir"))
		if err != nil {
			continue
		}
		e := entryIn(got)
		if got, err = k.call(opLookup, e.node, names("secret")); err != nil {
			continue // it was a link
		}
		if got := k.contents(entryIn(got).node); got != "public" {
			t.Fatalf("read %q", got)
		}
		seen++
	}
	t.Logf("looking first was fooled %d times, the server never of %d", fooled, seen)
}

// Numbers that the guest was never given, or not any more, are none.
func TestNumbers(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"a", "b"} {
		put(t, filepath.Join(w.folder, name), name)
	}
	k := mount(t, w.folder, false)
	a, b := k.lookup(rootNode, "a"), k.lookup(rootNode, "b")
	ha := k.open(a.node, unix.O_RDWR)
	if got := k.must(opRead, a.node, readBody(ha, 0, 10)); string(got) != "a" {
		t.Errorf("read %q", got)
	}
	for _, handle := range []uint64{0, ha + 1, math.MaxUint64} {
		k.fails(unix.EBADF, opRead, a.node, readBody(handle, 0, 10))
		k.fails(unix.EBADF, opRelease, a.node, u64s(handle), u32s(0, 0), u64s(0))
	}
	k.fails(unix.EBADF, opRead, b.node, readBody(ha, 0, 10)) // it is another's
	k.fails(unix.EBADF, opWrite, b.node, writeBody(ha, 0, 0, "x"))
	k.fails(unix.EBADF, opSetattr, b.node, setattrBody(setSize|setHandle, ha, 0, 0, 0, 0))
	k.fails(unix.EBADF, opGetattr, b.node, u32s(getattrHandle, 0), u64s(ha))
	k.fails(unix.ENOTDIR, opReaddir, a.node, readBody(ha, 0, 4096))
	hd := binary.LittleEndian.Uint64(k.must(opOpendir, rootNode, u32s(0, 0)))
	k.fails(unix.EISDIR, opRead, rootNode, readBody(hd, 0, 10))
	k.fails(unix.EBADF, opWrite, rootNode, writeBody(hd, 0, 0, "x"))
	for _, node := range []uint64{0, b.node + 1, math.MaxUint64} {
		k.fails(unix.ESTALE, opGetattr, node, u32s(0, 0), u64s(0))
		k.fails(unix.ESTALE, opOpen, node, u32s(0, 0))
		k.fails(unix.ESTALE, opLookup, node, names("a"))
	}
	// More than it was told of.
	k.send(opForget, b.node, u64s(math.MaxUint64))
	k.send(opForget, rootNode, u64s(math.MaxUint64))
	k.send(opBatchForget, 0, append(u32s(math.MaxUint32, 0), u64s(b.node, 1, 99, 1)...))
	k.send(opInterrupt, 0, u64s(1))
	k.fails(unix.ESTALE, opGetattr, b.node, u32s(0, 0), u64s(0))
	if got := k.lookup(rootNode, "b"); got.node == b.node || k.contents(got.node) != "b" {
		t.Errorf("found again: %+v", got)
	}
	// What is open stays, though it is forgotten, and goes when it is closed.
	k.send(opForget, a.node, u64s(1))
	k.must(opRead, a.node, readBody(ha, 0, 10))
	k.must(opRelease, a.node, u64s(ha), u32s(0, 0), u64s(0))
	k.fails(unix.EBADF, opRead, a.node, readBody(ha, 0, 10))
}

// Lengths that do not fit end the session if they are the message's, and the request else.
func TestLengths(t *testing.T) {
	w := newWorld(t)
	put(t, filepath.Join(w.folder, "a"), "a")
	k := mount(t, w.folder, false)
	a := k.lookup(rootNode, "a")
	h := k.open(a.node, unix.O_RDWR)
	if got := k.must(opRead, a.node, readBody(h, 0, math.MaxUint32)); string(got) != "a" {
		t.Errorf("read %q", got)
	}
	k.fails(unix.EINVAL, opRead, a.node, readBody(h, math.MaxUint64, 10))
	body := writeBody(h, 0, 0, "xyz")
	binary.LittleEndian.PutUint32(body[16:], math.MaxUint32)
	k.fails(unix.EINVAL, opWrite, a.node, body)
	hd := binary.LittleEndian.Uint64(k.must(opOpendir, rootNode, u32s(0, 0)))
	k.must(opReaddir, rootNode, readBody(hd, 0, math.MaxUint32))
	k.must(opReaddir, rootNode, readBody(hd, 0, 3)) // no room for anything
	for _, op := range []opcode{
		opLookup, opSetattr, opSymlink, opMknod, opMkdir, opUnlink, opRmdir, opRename, opRename2, opLink, opOpen, opCreate, opGetattr, opAccess,
		opRead, opWrite, opFallocate, opLseek, opRelease, opReaddir,
	} {
		k.fails(unix.EINVAL, op, rootNode)
	}
	for _, length := range []uint32{0, inHeaderSize - 1, math.MaxUint32} {
		k := mount(t, w.folder, false)
		head := make([]byte, inHeaderSize)
		binary.LittleEndian.PutUint32(head, length)
		if _, err := k.conn.Write(head); err != nil {
			t.Fatal(err)
		}
		if err := <-k.served; !errors.Is(err, errMessage) {
			t.Errorf("%d bytes: %v", length, err)
		}
	}
}

// Nothing on the host gets to be a device, or to run as somebody else.
func TestPrivileges(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(w.folder, "file")
	put(t, path, "x")
	k := mount(t, w.folder, false)
	for _, kind := range []uint32{unix.S_IFCHR, unix.S_IFBLK, unix.S_IFDIR, unix.S_IFLNK} {
		k.fails(unix.EPERM, opMknod, rootNode, u32s(kind|0o666, 0x103, 0, 0), names("node"))
	}
	file := k.lookup(rootNode, "file")
	for _, mode := range []uint32{0o4755, 0o2755, 0o6777} {
		k.must(opSetattr, file.node, setattrBody(setMode, 0, 0, mode, 0, 0))
		if got := k.attributes(file.node).mode; got != unix.S_IFREG|mode&0o777 {
			t.Errorf("%o became %o", mode, got)
		}
	}
	// A program of the host's that has it loses it before it is another.
	for name, change := range map[string]func(){
		"opened":    func() { k.open(file.node, unix.O_WRONLY) },
		"truncated": func() { k.must(opSetattr, file.node, setattrBody(setSize, 0, 0, 0, 0, 0)) },
	} {
		if err := os.Chmod(path, 0o755|os.ModeSetuid|os.ModeSetgid); err != nil {
			t.Fatal(err)
		}
		k.open(file.node, unix.O_RDONLY)
		if got := k.attributes(file.node).mode; got != unix.S_IFREG|0o6755 {
			t.Errorf("before it was %s: %o", name, got)
		}
		change()
		if got := k.attributes(file.node).mode; got != unix.S_IFREG|0o755 {
			t.Errorf("%s: %o", name, got)
		}
	}
	if os.Geteuid() == 0 {
		// The host's own device is seen, and not opened.
		if err := unix.Mknod(filepath.Join(w.folder, "null"), unix.S_IFCHR|0o666, 0x103); err == nil {
			k.fails(unix.EACCES, opOpen, k.lookup(rootNode, "null").node, u32s(unix.O_RDWR, 0))
		}
	}
}

// A guest that may only read changes nothing, whatever it asks for. One that may write does so by
// the same.
func TestReadOnly(t *testing.T) {
	requests := func(k *kernel) (all []func() error) {
		file, dir := k.lookup(rootNode, "file").node, k.lookup(rootNode, "dir").node
		ask := func(op opcode, node uint64, parts ...[]byte) {
			all = append(all, func() error { _, err := k.call(op, node, parts...); return err })
		}
		ask(opSetattr, file, setattrBody(setMode, 0, 0, 0o600, 0, 0))
		ask(opSymlink, rootNode, names("link", "file"))
		ask(opMknod, rootNode, u32s(unix.S_IFREG, 0, 0, 0), names("node"))
		ask(opMkdir, rootNode, u32s(0o700, 0), names("dir2"))
		ask(opCreate, rootNode, u32s(unix.O_RDWR, 0o600, 0, 0), names("new"))
		ask(opOpen, file, u32s(unix.O_WRONLY, 0))
		ask(opOpen, file, u32s(unix.O_RDWR, 0))
		ask(opOpen, file, u32s(unix.O_RDONLY|unix.O_TRUNC, 0))
		ask(opLink, rootNode, u64s(file), names("file2"))
		ask(opRename, rootNode, u64s(dir), names("file", "file"))
		ask(opRename2, dir, u64s(rootNode), u32s(0, 0), names("file", "file"))
		ask(opUnlink, rootNode, names("file"))
		ask(opRmdir, rootNode, names("dir"))
		ask(opAccess, file, u32s(unix.W_OK, 0))
		return all
	}
	for _, readOnly := range []bool{false, true} {
		w := newWorld(t)
		put(t, filepath.Join(w.folder, "file"), "x")
		if err := os.Mkdir(filepath.Join(w.folder, "dir"), 0o755); err != nil {
			t.Fatal(err)
		}
		before := snapshot(t, w.folder)
		k := mount(t, w.folder, readOnly)
		for i, request := range requests(k) {
			switch err := request(); {
			case readOnly && !errors.Is(err, unix.EROFS), !readOnly && err != nil:
				t.Errorf("read only: %v: request %d: %v", readOnly, i, err)
			}
		}
		file, err := k.call(opLookup, rootNode, names("file"))
		if readOnly {
			n := entryIn(file).node
			h := k.open(n, unix.O_RDONLY)
			k.fails(unix.EROFS, opWrite, n, writeBody(h, 0, 0, "y"))
			k.fails(unix.EROFS, opFallocate, n, u64s(h, 0, 10), u32s(0, 0))
		}
		if after := snapshot(t, w.folder); (after == before) != readOnly || (err == nil) != readOnly {
			t.Errorf("read only: %v: was %s, is %s", readOnly, before, after)
		}
	}
}

// snapshot tells what is in a directory.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b bytes.Buffer
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			b.WriteString(path + " " + info.Mode().String() + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
