package share

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openFiles is how many files this process has open.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A guest may know more files than are open. They are opened again when they are needed, if they
// are still the same.
func TestManyNodes(t *testing.T) {
	const dirs, files = 40, 10
	w := newWorld(t)
	for i := range dirs {
		if err := os.Mkdir(filepath.Join(w.folder, fmt.Sprint(i)), 0o755); err != nil {
			t.Fatal(err)
		}
		for j := range files {
			put(t, filepath.Join(w.folder, fmt.Sprint(i), fmt.Sprint(j)), fmt.Sprint(i, j))
		}
	}
	before := openFiles(t)
	k := mount(t, w.folder, false, func(f *Folder) { f.limit = minOpen })
	var dir [dirs]uint64
	var file [dirs][files]uint64
	for i := range dirs {
		dir[i] = k.lookup(rootNode, fmt.Sprint(i)).node
		for j := range files {
			file[i][j] = k.lookup(dir[i], fmt.Sprint(j)).node
		}
	}
	if now := openFiles(t); now > before+minOpen+10 {
		t.Errorf("%d files are open", now-before)
	}
	k.must(opRename, rootNode, u64s(dir[1]), names("0", "0"+"moved"))
	for i := range dirs {
		for j := range files {
			if got := k.contents(file[i][j]); got != fmt.Sprint(i, j) {
				t.Errorf("%d/%d: read %q", i, j, got)
			}
		}
	}
	// The host puts another file in its place.
	path := filepath.Join(w.folder, "5", "5")
	put(t, path+".new", "new")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	k.fails(unix.ESTALE, opOpen, file[5][5], u32s(0, 0))
	if got := k.lookup(dir[5], "5"); k.contents(got.node) != "new" {
		t.Errorf("looked again: %+v", got)
	}
	// What is known by its kids alone is forgotten with them.
	for j := range files {
		k.send(opForget, file[7][j], u64s(1))
	}
	k.send(opForget, dir[7], u64s(1))
	k.fails(unix.ESTALE, opGetattr, dir[7], u32s(0, 0), u64s(0))
}

func TestManyHandles(t *testing.T) {
	w := newWorld(t)
	put(t, filepath.Join(w.folder, "file"), "x")
	k := mount(t, w.folder, false, func(f *Folder) { f.limit = minOpen })
	file := k.lookup(rootNode, "file").node
	var last uint64
	for range minOpen {
		last = k.open(file, unix.O_RDONLY)
	}
	k.fails(unix.ENFILE, opOpen, file, u32s(0, 0))
	k.fails(unix.ENFILE, opOpendir, rootNode, u32s(0, 0))
	k.fails(unix.ENFILE, opCreate, rootNode, u32s(unix.O_RDWR, 0o600, 0, 0), names("new"))
	k.must(opRelease, file, u64s(last), u32s(0, 0), u64s(0))
	k.open(file, unix.O_RDONLY)
}

// When a session ends, all that it had is given back.
func TestEnd(t *testing.T) {
	w := newWorld(t)
	put(t, filepath.Join(w.folder, "file"), "x")
	f, err := Open(w.folder, false)
	if err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	for range 3 {
		ours, theirs := net.Pipe()
		k := &kernel{t: t, conn: ours, served: make(chan error, 1)}
		go func() { k.served <- f.Serve(theirs) }()
		k.must(opInit, 0, u32s(7, 37, 0, 0))
		for range 5 {
			k.open(k.lookup(rootNode, "file").node, unix.O_RDWR)
			k.must(opOpendir, rootNode, u32s(0, 0))
		}
		ours.Close()
		if err := <-k.served; err != nil {
			t.Error(err)
		}
	}
	if now := openFiles(t); now != before {
		t.Errorf("%d files are open, which were %d", now, before)
	}
	for range 2 {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := f.Serve(nil); err == nil {
		t.Error("it is served after it was closed")
	}
}

func TestOpen(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{filepath.Join(w.folder, "none"), filepath.Join(w.outside, "secret")} {
		if _, err := Open(path, false); err == nil {
			t.Errorf("opened %s", path)
		}
	}
}

// Whatever a guest says, nothing outside the folder changes, and the session ends with it.
func FuzzSession(f *testing.F) {
	request := func(op opcode, node uint64, body []byte) []byte {
		b := u32s(uint32(inHeaderSize+len(body)), uint32(op))
		b = append(b, u64s(1, node)...)
		return append(append(b, u32s(0, 0, 1, 0)...), body...)
	}
	start := bytes.Join([][]byte{
		request(opInit, 0, u32s(7, 37, 0, 0)), request(opLookup, rootNode, names("file")), request(opLookup, rootNode, names("dir")),
		request(opLookup, rootNode, names("link")), request(opOpen, 2, u32s(unix.O_RDWR, 0)), request(opOpendir, rootNode, u32s(0, 0)),
	}, nil)
	for _, r := range [][]byte{
		request(opRead, 2, readBody(1, 0, 100)), request(opWrite, 2, writeBody(1, 0, 0, "data")), request(opReaddirplus, rootNode, readBody(2, 0, 1000)),
		request(opReaddir, rootNode, readBody(2, 0, 1000)), request(opRename2, rootNode, append(u64s(3), append(u32s(0, 0), names("file", "..")...)...)),
		request(opSymlink, 4, names("x", "y")), request(opMkdir, 3, append(u32s(0o777, 0), names("..")...)), request(opLink, 4, append(u64s(2), names("x")...)),
		request(opSetattr, 4, setattrBody(0xfff, 1, 1, 0o777, 0, 0)), request(opUnlink, 4, names("secret")), request(opBatchForget, 0, append(u32s(2, 0), u64s(2, 1, 3, 1)...)),
		request(opCreate, 4, append(u32s(2, 0o600, 0, 0), names("x")...)), request(opMknod, 3, append(u32s(unix.S_IFIFO, 0, 0, 0), names("p")...)),
		request(opFallocate, 2, append(u64s(1, 0, 10), u32s(3, 0)...)), request(opLseek, 2, append(u64s(1, 0), u32s(3, 0)...)), request(opStatfs, 1, nil),
	} {
		f.Add(r)
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		w := newWorld(t)
		put(t, filepath.Join(w.folder, "file"), "file")
		if err := os.Mkdir(filepath.Join(w.folder, "dir"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../outside", filepath.Join(w.folder, "link")); err != nil {
			t.Fatal(err)
		}
		before := snapshot(t, w.outside)
		folder, err := Open(w.folder, false)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = folder.Serve(theirs)
			theirs.Close()
		}()
		go func() { _, _ = io.Copy(io.Discard, ours) }()
		_ = ours.SetDeadline(time.Now().Add(patience))
		_, _ = ours.Write(append(bytes.Clone(start), stream...))
		ours.Close()
		<-served
		if err := folder.Close(); err != nil {
			t.Error(err)
		}
		if after := snapshot(t, w.outside); after != before || get(t, filepath.Join(w.outside, "secret")) != "secret" {
			t.Errorf("was %s, is %s", before, after)
		}
	})
}
