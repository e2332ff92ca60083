package guestlink

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/archive"
	"github.com/smolvm/smolvm/internal/guestapi"
)

func readFile(t testing.TB, l *Link, path string) (string, error) {
	t.Helper()
	var b bytes.Buffer
	err := l.Files(t.Context(), guestapi.Files{Op: guestapi.FilesRead, Path: path}, nil, &b)
	return b.String(), err
}

func writeFile(t testing.TB, l *Link, path, content string, mode uint32) error {
	t.Helper()
	return l.Files(t.Context(), guestapi.Files{Op: guestapi.FilesWrite, Path: path, Mode: mode}, strings.NewReader(content), nil)
}

// only fails if dir has anything but these entries.
func only(t testing.TB, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s has %q, not %q", dir, got, want)
	}
}

func TestFilesReadWrite(t *testing.T) {
	l := newLink(t)
	dir := t.TempDir()
	path := dir + "/f"
	check := func(name, want string, mode fs.FileMode, owner uint32) {
		t.Helper()
		got, err := readFile(t, l, dir+"/"+name)
		info, statErr := os.Stat(dir + "/" + name)
		if err != nil || statErr != nil || got != want || info.Mode() != mode || info.Sys().(*syscall.Stat_t).Uid != owner {
			t.Errorf("%s: %q, %v, %v", name, got, err, info)
		}
	}
	if err := writeFile(t, l, path, "first", 0o606); err != nil {
		t.Fatal(err)
	}
	check("f", "first", 0o606, 0)
	if err := os.Chown(path, 4242, 4242); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o750|fs.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("f", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(t, l, dir+"/link", "second", 0o600); err != nil {
		t.Fatal(err)
	}
	check("f", "second", 0o750|fs.ModeSetuid, 4242)
	if info, err := os.Lstat(dir + "/link"); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("the link: %v, %v", info, err)
	}
	if err := l.Files(t.Context(), guestapi.Files{Op: guestapi.FilesWrite, Path: dir + "/empty"}, nil, nil); err != nil {
		t.Fatal(err)
	}
	check("empty", "", 0o644, 0)
	only(t, dir, "empty", "f", "link")
	// A file whose size says nothing.
	want, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readFile(t, l, "/proc/filesystems"); err != nil || got != string(want) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestFilesRefused(t *testing.T) {
	l := newLink(t)
	dir := t.TempDir()
	file, fifo := dir+"/file", dir+"/fifo"
	if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	packed := pack(t, file)
	for _, c := range []struct {
		op   guestapi.FilesOp
		path string
		want error
		says string
	}{
		{guestapi.FilesRead, dir + "/no", fs.ErrNotExist, "no such file"},
		{guestapi.FilesRead, dir, syscall.EISDIR, "is a directory"},
		{guestapi.FilesRead, file + "/x", syscall.ENOTDIR, "not a directory"},
		{guestapi.FilesRead, fifo, nil, "no regular file"},
		{guestapi.FilesRead, "/dev/zero", nil, "no regular file"},
		{guestapi.FilesRead, "", fs.ErrNotExist, "no such file"},
		{guestapi.FilesWrite, dir + "/no/x", fs.ErrNotExist, "no such file"},
		{guestapi.FilesWrite, dir, syscall.EISDIR, "is a directory"},
		{guestapi.FilesWrite, file + "/x", syscall.ENOTDIR, "not a directory"},
		{guestapi.FilesWrite, "/dev/null", nil, "no regular file"},
		{guestapi.FilesWrite, "/proc/no", nil, ""},
		{guestapi.FilesPack, dir + "/no", fs.ErrNotExist, "no such file"},
		{guestapi.FilesPack, fifo, nil, "neither a file nor a directory"},
		{guestapi.FilesPack, file + "/", syscall.ENOTDIR, "not a directory"},
		{guestapi.FilesUnpack, dir + "/no/x", fs.ErrNotExist, "no such directory: " + dir + "/no"},
		{guestapi.FilesUnpack, file + "/x", syscall.ENOTDIR, "not a directory"},
		{"burn", file, nil, "unknown operation"},
	} {
		err := l.Files(t.Context(), guestapi.Files{Op: c.op, Path: c.path}, bytes.NewReader(packed), io.Discard)
		var refused *RefusedError
		if !errors.As(err, &refused) || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(refused.Failure.Error, c.says) {
			t.Errorf("%s %q: got %v", c.op, c.path, err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "old" {
		t.Errorf("the file has %q, %v", got, err)
	}
	long := guestapi.Files{Op: guestapi.FilesRead, Path: strings.Repeat("x", guestapi.MaxPayload)}
	if err := l.Files(t.Context(), long, nil, nil); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("a long path: %v", err)
	}
	only(t, dir, "fifo", "file")
}

// What a guest says is fit to be read in a terminal.
func TestRefusalIsPrintable(t *testing.T) {
	evil := guestapi.Failure{Error: "\x1b]0;owned\x07\r\nü" + strings.Repeat("x", maxReason)}
	text := refused("op", guestapi.Encode(&evil)).Error()
	if strings.ContainsAny(text, "\x1b\x07\r\n") || !strings.Contains(text, "owned") || !strings.Contains(text, "ü") || len(text) > 2*maxReason {
		t.Errorf("got %.100q, %d bytes", text, len(text))
	}
}

// pack is an archive of what is at path.
func pack(t testing.TB, path string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := archive.Pack(t.Context(), &b, path, archive.PackOptions{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Many small files and a big one go there and come back the same.
func TestFilesArchives(t *testing.T) {
	l := newLink(t)
	dir := t.TempDir()
	src := dir + "/src"
	for d := range 100 {
		sub := fmt.Sprintf("%s/%d", src, d)
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		for f := range 100 {
			if err := os.WriteFile(fmt.Sprintf("%s/%d", sub, f), []byte(fmt.Sprint(d, f)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	big, err := os.Create(src + "/big")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(big, sum), io.LimitReader(noise(), 8<<20)); err != nil {
		t.Fatal(err)
	}
	if err := big.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Files(t.Context(), guestapi.Files{Op: guestapi.FilesUnpack, Path: dir + "/there"}, bytes.NewReader(pack(t, src)), nil); err != nil {
		t.Fatal(err)
	}
	read, write := io.Pipe()
	extracted := make(chan error, 1)
	go func() { extracted <- archive.Extract(t.Context(), read, dir+"/back", archive.ExtractOptions{}) }()
	err = l.Files(t.Context(), guestapi.Files{Op: guestapi.FilesPack, Path: dir + "/there"}, nil, write)
	write.CloseWithError(err)
	if err := errors.Join(err, <-extracted); err != nil {
		t.Fatal(err)
	}
	count := 0
	err = filepath.WalkDir(dir+"/back", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		count++
		if e.Name() == "big" {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			back := sha256.New()
			if _, err := io.Copy(back, f); err != nil || !bytes.Equal(back.Sum(nil), sum.Sum(nil)) {
				t.Errorf("the big file is another: %v", err)
			}
			return nil
		}
		content, err := os.ReadFile(path)
		if want := fmt.Sprint(filepath.Base(filepath.Dir(path)), " ", e.Name()); string(content) != want {
			t.Errorf("%s has %q", path, content)
		}
		return err
	})
	if err != nil || count != 10_001 {
		t.Errorf("%d files came back, %v", count, err)
	}
}

// gatedReader yields something, tells so, and waits.
type gatedReader struct {
	read    atomic.Bool
	waiting chan struct{} // closed once it waits
	release chan error
}

func newGatedReader() *gatedReader {
	return &gatedReader{waiting: make(chan struct{}), release: make(chan error, 1)}
}

func (g *gatedReader) Read(p []byte) (int, error) {
	if g.read.CompareAndSwap(false, true) {
		return copy(p, "half of what is to"), nil
	}
	close(g.waiting)
	return 0, <-g.release
}

// However a write is broken off, the old contents stay, and nothing else does.
func TestFilesWriteBrokenOff(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		end  func(g *gatedReader, p *port, cancel func())
		want error
	}{
		"reader": {func(g *gatedReader, _ *port, _ func()) { g.release <- broken }, broken},
		"cancel": {func(_ *gatedReader, _ *port, cancel func()) { cancel() }, context.Canceled},
		"lost":   {func(_ *gatedReader, p *port, _ func()) { p.hangUp() }, ErrLost},
	} {
		t.Run(name, func(t *testing.T) {
			p := startGuest(t, newFakeSystem())
			l := dial(t, p)
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/f", []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			g := newGatedReader()
			done := make(chan error, 1)
			go func() { done <- l.Files(ctx, guestapi.Files{Op: guestapi.FilesWrite, Path: dir + "/f"}, g, nil) }()
			<-g.waiting
			if got, err := os.ReadFile(dir + "/f"); err != nil || string(got) != "old" {
				t.Errorf("before the end: %q, %v", got, err)
			}
			c.end(g, p, cancel)
			if err := <-done; !errors.Is(err, c.want) {
				t.Errorf("got %v", err)
			}
			select {
			case g.release <- io.EOF: // for the reader that is left
			default:
			}
			awaitOnly(t, dir, "f")
			if got, err := os.ReadFile(dir + "/f"); err != nil || string(got) != "old" {
				t.Errorf("in the end: %q, %v", got, err)
			}
		})
	}
}

// awaitOnly waits until dir has one entry, of that name.
func awaitOnly(t *testing.T, dir, name string) {
	t.Helper()
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, dir, unix.IN_DELETE); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 1 {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(watch), Events: unix.POLLIN}}, 10_000)
		for errors.Is(err, unix.EINTR) {
			ready, err = unix.Poll([]unix.PollFd{{Fd: int32(watch), Events: unix.POLLIN}}, 10_000)
		}
		if err != nil || ready == 0 {
			t.Errorf("nothing is deleted in %s: %v", dir, err)
		}
	}
	only(t, dir, name)
}

// Who does not want what comes out is left alone by the guest, and the link is fine.
func TestFilesOutputFails(t *testing.T) {
	l := newLink(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(dir+"/f", 1<<40); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("disk full")
	for _, op := range []guestapi.FilesOp{guestapi.FilesRead, guestapi.FilesPack} {
		fails := writerFunc(func([]byte) (int, error) { return 0, broken })
		if err := l.Files(t.Context(), guestapi.Files{Op: op, Path: dir + "/f"}, nil, fails); !errors.Is(err, broken) {
			t.Errorf("%s: %v", op, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancels := writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })
		if err := l.Files(ctx, guestapi.Files{Op: op, Path: dir + "/f"}, nil, cancels); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", op, err)
		}
		cancel()
	}
	if err := l.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if err := os.Remove(dir + "/f"); err != nil {
		t.Error(err)
	}
}

// A disk that is full is said to be, whichever way it is filled.
func TestFilesDiskFull(t *testing.T) {
	l := newLink(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	if err := writeFile(t, l, dir+"/f", strings.Repeat("x", 2<<20), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
	big := t.TempDir() + "/big"
	if err := os.WriteFile(big, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	err := l.Files(t.Context(), guestapi.Files{Op: guestapi.FilesUnpack, Path: dir}, bytes.NewReader(pack(t, big)), nil)
	var refused *RefusedError
	if !errors.Is(err, syscall.ENOSPC) || !errors.As(err, &refused) || !strings.Contains(refused.Failure.Error, "big: no space left") {
		t.Errorf("got %v", err)
	}
	only(t, dir)
}

// Those on the network have no part in it, and what is under way when a link is lost is
// not done again.
func TestFilesChannel(t *testing.T) {
	p := startGuest(t, newFakeSystem())
	c := openChannel(t, p, ChannelConfig{})
	dir := t.TempDir()
	f := guestapi.Files{Op: guestapi.FilesWrite, Path: dir + "/f"}
	if err := c.Files(t.Context(), f, strings.NewReader("content"), nil); err != nil {
		t.Fatal(err)
	}
	link, err := c.Link(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g := newGatedReader()
	done := make(chan error, 1)
	go func() { done <- c.Files(t.Context(), f, g, nil) }()
	<-g.waiting
	p.hangUp()
	<-link.Done()
	if err := <-done; !errors.Is(err, ErrLost) {
		t.Errorf("got %v", err)
	}
	g.release <- io.EOF
	var b bytes.Buffer
	if err := c.Files(t.Context(), guestapi.Files{Op: guestapi.FilesRead, Path: dir + "/f"}, nil, &b); err != nil || b.String() != "content" {
		t.Errorf("got %q, %v", &b, err)
	}
	awaitOnly(t, dir, "f")

	n := startNetwork(t)
	if channel, _, err := n.client(t).OpenChannel(guestapi.ChannelFiles, []byte(`{"op":"read","path":"/etc/passwd"}`)); err == nil {
		channel.Close()
		t.Error("moved files as the host does")
	}
}
