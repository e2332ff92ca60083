package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// old is a time with nanoseconds.
var old = time.Date(2001, 2, 3, 4, 5, 6, 789_012_345, time.UTC)

func write(t testing.TB, path, content string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t testing.TB, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func symlink(t testing.TB, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// setOld makes all at path and below old.
func setOld(t testing.TB, path string) {
	t.Helper()
	ts := unix.NsecToTimespec(old.UnixNano())
	err := filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// describe tells all that is to be kept of what is at root and below.
func describe(t testing.TB, root string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	names := make(map[inode]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		text := fmt.Sprintf("%v %v", info.Mode(), info.ModTime().UTC())
		switch {
		case info.Mode().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %d %x", len(content), sha256.Sum256(content))
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " -> " + target
		}
		if id, shared := identity(info); shared && info.Mode().IsRegular() {
			if names[id] == "" {
				names[id] = rel
			}
			text += " is " + names[id]
		}
		all[rel] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func same(t testing.TB, what string, got, want map[string]string) {
	t.Helper()
	if maps.Equal(got, want) {
		return
	}
	t.Errorf("%s is not the same", what)
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%q:\n got %s\nwant %s", name, got[name], text)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%q is too much", name)
		}
	}
}

// makeTree makes a directory with all that can be kept.
func makeTree(t testing.TB, path string) {
	t.Helper()
	mkdir(t, path, 0o755)
	write(t, path+"/empty", "", 0o600)
	write(t, path+"/script", "#!/bin/sh\n", 0o755)
	write(t, path+"/buffer", strings.Repeat("b", bufferSize), 0o644)
	write(t, path+"/big", strings.Repeat("0123456789abcdef", 40_000), 0o640)
	write(t, path+"/setuid", "x", 0o755|fs.ModeSetuid|fs.ModeSetgid)
	write(t, path+"/strange \n\x1b[31m\xff\xfe ü", "name", 0o644)
	write(t, path+"/"+strings.Repeat("long", 63), "name", 0o644)
	write(t, path+"/no access", "x", 0)
	mkdir(t, path+"/sub", 0o750)
	mkdir(t, path+"/sub/deeper", 0o700|fs.ModeSticky)
	mkdir(t, path+"/sub/deeper/empty", 0o500)
	mkdir(t, path+"/read only", 0o555)
	write(t, path+"/read only/file", "read only", 0o444)
	if err := os.Link(path+"/script", path+"/sub/same"); err != nil {
		t.Fatal(err)
	}
	symlink(t, "script", path+"/link")
	symlink(t, "/no/such\xff", path+"/sub/dangling")
	symlink(t, "../..", path+"/sub/up")
	setOld(t, path)
}

func pack(t testing.TB, path string, opts PackOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Pack(t.Context(), &b, path, opts); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	tree := dir + "/tree"
	makeTree(t, tree)
	var packed, extracted, total int64
	data := pack(t, tree, PackOptions{
		Warn:    func(s string) { t.Errorf("warned: %s", s) },
		OnBytes: func(done, all int64) { packed, total = done, all },
	})
	want := describe(t, tree)
	out := dir + "/out"
	err := Extract(t.Context(), bytes.NewReader(data), out, ExtractOptions{SetID: true, OnBytes: func(done, all int64) {
		if all != total {
			t.Errorf("%d bytes of %d, not of %d", done, all, total)
		}
		extracted = done
	}})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the copy", describe(t, out), want)
	if packed != total || extracted != total || total < 640_000 {
		t.Errorf("packed %d and extracted %d of %d", packed, extracted, total)
	}
	// Again, over what is there, it leaves nothing else behind.
	if err := Extract(t.Context(), bytes.NewReader(data), dir, ExtractOptions{SetID: true}); err != nil {
		t.Fatal(err)
	}
	delete(want, ".") // directories that are there are not touched but by their contents
	for _, name := range []string{"sub", "sub/deeper", "read only"} {
		delete(want, name)
	}
	again := describe(t, tree)
	for _, name := range []string{".", "sub", "sub/deeper", "read only"} {
		delete(again, name)
	}
	same(t, "the second copy", again, want)
	// Who is not trusted with them gets no such bits.
	plain := dir + "/plain"
	if err := Extract(t.Context(), bytes.NewReader(data), plain, ExtractOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"setuid": 0o755, "sub/deeper": 0o700 | fs.ModeDir} {
		if info, err := os.Lstat(plain + "/" + name); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

// What cannot be packed is left out, and what does not tell its true size is whole.
func TestPackOddFiles(t *testing.T) {
	dir := t.TempDir() + "/odd"
	mkdir(t, dir, 0o755)
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/file", "x", 0o600)
	var warnings []string
	data := pack(t, dir, PackOptions{Warn: func(s string) { warnings = append(warnings, s) }})
	if len(warnings) != 1 || !strings.Contains(warnings[0], "/fifo: left out") {
		t.Errorf("warned %q", warnings)
	}
	out := t.TempDir()
	if err := Extract(t.Context(), bytes.NewReader(data), out, ExtractOptions{}); err != nil {
		t.Fatal(err)
	}
	if all := describe(t, out); len(all) != 3 {
		t.Errorf("got %v", all)
	}
	want, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		t.Fatal(err)
	}
	if err := Extract(t.Context(), bytes.NewReader(pack(t, "/proc/filesystems", PackOptions{})), out, ExtractOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(out + "/filesystems"); err != nil || !bytes.Equal(got, want) || len(got) == 0 {
		t.Errorf("got %q, %v", got, err)
	}
}

// change does something once so many bytes were written.
type change struct {
	bytes.Buffer
	after int
	do    func()
}

func (c *change) Write(p []byte) (int, error) {
	if c.do != nil && c.Len()+len(p) >= c.after {
		c.do()
		c.do = nil
	}
	return c.Buffer.Write(p)
}

// Files that change while they are read do not break what follows.
func TestPackChangingFiles(t *testing.T) {
	const size = 4 << 20
	for name, c := range map[string]struct {
		change func(path string) error
		warns  string
		size   int64
	}{
		"grows":    {func(path string) error { return os.Truncate(path, 2*size) }, "", size},
		"shrinks":  {func(path string) error { return os.Truncate(path, size/2+17) }, "cut short", size},
		"empties":  {func(path string) error { return os.Truncate(path, 0) }, "cut short", size},
		"vanishes": {func(path string) error { return os.Remove(path + "2") }, "removed", size},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir() + "/d"
			mkdir(t, dir, 0o755)
			write(t, dir+"/a", strings.Repeat("a", size), 0o644)
			write(t, dir+"/a2", "gone", 0o644)
			write(t, dir+"/b", "b", 0o644)
			warned := ""
			w := &change{after: size / 4, do: func() {
				if err := c.change(dir + "/a"); err != nil {
					t.Error(err)
				}
			}}
			if err := Pack(t.Context(), w, dir, PackOptions{Warn: func(s string) { warned += s }}); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(warned, c.warns) || c.warns == "" && warned != "" {
				t.Errorf("warned %q", warned)
			}
			out := t.TempDir()
			if err := Extract(t.Context(), &w.Buffer, out, ExtractOptions{}); err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(out + "/d/a"); err != nil || info.Size() != c.size {
				t.Errorf("got %v, %v", info, err)
			}
			if b, err := os.ReadFile(out + "/d/b"); err != nil || string(b) != "b" {
				t.Errorf("what follows: %q, %v", b, err)
			}
		})
	}
}

// Wherever an archive is cut, that is noticed, and no file is there that is not whole.
func TestTruncated(t *testing.T) {
	dir := t.TempDir()
	makeTree(t, dir+"/tree")
	data := pack(t, dir+"/tree", PackOptions{})
	want := describe(t, dir+"/tree")
	for cut := 0; cut < len(data); cut += 512 + cut/16 {
		out := t.TempDir()
		err := Extract(t.Context(), bytes.NewReader(data[:cut]), out+"/tree", ExtractOptions{SetID: true})
		if !errors.Is(err, ErrMalformed) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d of %d: %v", cut, len(data), err)
		}
		if _, err := os.Lstat(out + "/tree"); err != nil {
			continue
		}
		for name, text := range describe(t, out+"/tree") {
			if text[0] == '-' && strings.Fields(text)[6] != strings.Fields(want[name])[6] {
				t.Errorf("cut at %d: %s is %s", cut, name, text)
			}
		}
	}
	if err := Extract(t.Context(), bytes.NewReader(append(data, 0)), dir+"/more", ExtractOptions{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("with more behind its end: %v", err)
	}
}

// A reader or writer that fails is why it fails, and a context that ends is obeyed.
func TestBreakingOff(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/f", strings.Repeat("x", 1<<20), 0o644)
	broken := errors.New("broken")
	if err := Pack(t.Context(), brokenWriter{broken}, dir, PackOptions{}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	data := pack(t, dir+"/f", PackOptions{})
	half := io.MultiReader(bytes.NewReader(data[:len(data)/2]), brokenReader{broken})
	if err := Extract(t.Context(), half, dir+"/out", ExtractOptions{}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Pack(ended, io.Discard, dir, PackOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := Extract(ended, bytes.NewReader(data), dir+"/out", ExtractOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	middle, cancel := context.WithCancel(t.Context())
	err := Extract(middle, bytes.NewReader(data), dir+"/out", ExtractOptions{OnBytes: func(int64, int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("in the middle: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

type brokenWriter struct{ err error }

func (b brokenWriter) Write([]byte) (int, error) { return 0, b.err }

type brokenReader struct{ err error }

func (b brokenReader) Read([]byte) (int, error) { return 0, b.err }

// A disk that is full is said to be, and holds no half of a file.
func TestDiskFull(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	if err := unix.Mount("tmpfs", out, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(out, 0); err != nil {
			t.Error(err)
		}
	}()
	write(t, dir+"/f", strings.Repeat("x", 2<<20), 0o644)
	err := Extract(t.Context(), bytes.NewReader(pack(t, dir+"/f", PackOptions{})), out, ExtractOptions{})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if entries, err := os.ReadDir(out); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}
