package sockdir

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// openLong opens a directory whose path is too long for sockets.
func openLong(t *testing.T) (dir *Dir, path string) {
	t.Helper()
	path = t.TempDir()
	for range 5 {
		path = filepath.Join(path, strings.Repeat("d", 100))
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if l, err := net.Listen("unix", filepath.Join(path, "s")); err == nil {
		t.Fatal("the path is not too long", l.Close())
	}
	dir, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	})
	return dir, path
}

func wantPrivate(t *testing.T, path string) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != os.ModeSocket|0o600 {
		t.Error("mode", info.Mode())
	}
}

func TestListen(t *testing.T) {
	dir, path := openLong(t)
	for range 2 { // the second is in place of what the first left
		f, err := dir.Listen(t.Context(), "s")
		if err != nil {
			t.Fatal(err)
		}
		wantPrivate(t, filepath.Join(path, "s"))
		// Nobody has accepted it yet.
		conn, err := dir.Dial(t.Context(), "s")
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
		if _, err := dir.Dial(t.Context(), "s"); err == nil {
			t.Error("somebody listens still")
		}
	}
	if err := dir.Remove("s"); err != nil {
		t.Error(err)
	}
	if err := dir.Remove("s"); err != nil {
		t.Error("the second time:", err)
	}
}

// A listener works on when its directory is closed, and leaves its socket to who
// may have replaced it.
func TestListener(t *testing.T) {
	dir, path := openLong(t)
	made, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	l, err := made.Listener(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	if err := made.Close(); err != nil {
		t.Error(err)
	}
	wantPrivate(t, filepath.Join(path, "s"))
	ours, err := dir.Dial(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := ours.Close(); err != nil {
		t.Error(err)
	}
	if err := theirs.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	wantPrivate(t, filepath.Join(path, "s"))
}

func TestOpenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if dir, err := Open(path); err == nil {
		t.Error("a file is opened as a directory", dir.Close())
	}
}
