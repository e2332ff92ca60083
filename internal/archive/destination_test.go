package archive

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Where a copy goes, and what must not be.
func TestDestination(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, name := range []string{"src", "src/d", "full", "full/src", "full/f", "full/inner"} {
		mkdir(t, name, 0o755)
	}
	write(t, "f", "new", 0o644)
	write(t, "src/h", "new", 0o644)
	write(t, "src/d/g", "new", 0o644)
	write(t, "full/old", "old", 0o600)
	write(t, "full/inner/d", "a file", 0o600)
	symlink(t, "f", "tofile")
	symlink(t, "src", "todir")
	symlink(t, "full", "tofull")
	symlink(t, "nowhere", "dangling")
	if err := unix.Mkfifo("fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		src, dst string
		follow   bool
		makes    string // empty: it fails
		err      error
	}{
		{src: "f", dst: "new1", makes: "new1"},
		{src: "f", dst: "full/old", makes: "full/old"},
		{src: "f", dst: "full/", err: syscall.EISDIR},
		{src: "f", dst: "src/d", makes: "src/d/f"},
		{src: "f", dst: "src/d/.", makes: "src/d/f"},
		{src: "f", dst: "tofull/inner", makes: "full/inner/f"},
		{src: "f", dst: "tofile", makes: "tofile"},
		{src: "f", dst: "dangling", makes: "dangling"},
		{src: "f", dst: "new2/", err: fs.ErrNotExist},
		{src: "f", dst: "no/such", err: fs.ErrNotExist},
		{src: "f", dst: "f/x", err: syscall.ENOTDIR},
		{src: "f", dst: "f/", err: syscall.ENOTDIR},
		{src: "f", dst: "fifo", err: syscall.EINVAL},
		{src: "f", dst: "", err: fs.ErrNotExist},
		{src: "src", dst: "copy1", makes: "copy1/d/g"},
		{src: "src/", dst: "copy2/", makes: "copy2/d/g"},
		{src: "src", dst: "full", makes: "full/src/d/g"},
		{src: "todir/", dst: "full", makes: "full/todir/d/g"},
		{src: "src/.", dst: "full", makes: "full/d/g"},
		{src: "src/.", dst: "copy3", makes: "copy3/d/g"},
		{src: "src/d/..", dst: "copy4", makes: "copy4/d/g"},
		{src: "src/.", dst: "full/inner", err: syscall.ENOTDIR},
		{src: "src", dst: "f", err: syscall.ENOTDIR},
		{src: "src", dst: "no/such", err: fs.ErrNotExist},
		{src: "todir", dst: "copy5", makes: "copy5"},
		{src: "todir", dst: "copy6", follow: true, makes: "copy6/d/g"},
		{src: "tofile", dst: "copy7", follow: true, makes: "copy7"},
		{src: "no", dst: "x", err: fs.ErrNotExist},
		{src: "", dst: "x", err: fs.ErrNotExist},
		{src: "f/", dst: "x", err: syscall.ENOTDIR},
		{src: "f/.", dst: "x", err: syscall.ENOTDIR},
		{src: "fifo", dst: "x", err: syscall.EINVAL},
		{src: "dangling", dst: "copy8", follow: true, makes: "copy8"}, // it became a file
	} {
		var b bytes.Buffer
		err := Pack(t.Context(), &b, c.src, PackOptions{Follow: c.follow})
		if checked := Check(c.src, c.follow); (checked == nil) != (err == nil) {
			t.Errorf("%s: checked %v, packed %v", c.src, checked, err)
		}
		if err == nil {
			err = Extract(t.Context(), &b, c.dst, ExtractOptions{})
		}
		if !errors.Is(err, c.err) {
			t.Errorf("%s to %s: got %v, want %v", c.src, c.dst, err, c.err)
		}
		if c.makes != "" && c.err == nil {
			if _, err := os.Lstat(c.makes); err != nil {
				t.Errorf("%s to %s: %v", c.src, c.dst, err)
			}
		}
	}
	for name, want := range map[string]fs.FileMode{"tofile": 0o644, "dangling": 0o644, "copy5": fs.ModeSymlink | 0o777, "copy7": 0o644} {
		if info, err := os.Lstat(name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if leftovers, _ := filepath.Glob("full/.smolvm-*"); len(leftovers) > 0 {
		t.Errorf("left behind: %q", leftovers)
	}
}
