package qemu

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestLongPath(t *testing.T) {
	path := t.TempDir()
	for range 5 {
		path = filepath.Join(path, strings.Repeat("d", 100))
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if l, err := net.Listen("unix", filepath.Join(path, "s")); err == nil {
		t.Fatal("the path is not too long", l.Close())
	}
	dir, err := openDirectory(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close() //nolint:errcheck // only looked things up in
	for range 2 {     // the second is in place of what the first left
		f, err := dir.listen(t.Context(), "s")
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(filepath.Join(path, "s"))
		if err != nil || info.Mode() != os.ModeSocket|0o600 {
			t.Error("mode", info.Mode(), err)
		}
		// Nobody has accepted it yet.
		conn, err := dir.dial(t.Context(), "s")
		if err != nil {
			t.Fatal(err)
		}
		fd, _, err := syscall.Accept(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Close(fd); err != nil {
			t.Error(err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if _, err := dir.dial(t.Context(), "s"); err == nil {
			t.Error("somebody listens still")
		}
	}
	if err := dir.remove("s"); err != nil {
		t.Error(err)
	}
	if err := dir.remove("s"); err != nil {
		t.Error("the second time:", err)
	}
}
