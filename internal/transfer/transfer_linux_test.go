package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/smolvm/smolvm/internal/archive"
	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/guestlink/linktest"
	"github.com/smolvm/smolvm/internal/network/nettest"
	"github.com/smolvm/smolvm/internal/transfer"
)

func TestMain(m *testing.M) {
	linktest.Main()
	nettest.Main(m.Run)
}

// openGuest is a real guest server, which shares this machine's files.
func openGuest(t testing.TB) *guestlink.Link {
	t.Helper()
	g, err := linktest.Start(nettest.New(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	port, err := g.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	link, err := guestlink.Dial(t.Context(), port, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { link.Close() })
	return link
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func wantFile(t testing.TB, path, content string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != content {
		t.Errorf("%s: %.20q, %v", path, got, err)
	}
}

// copyFunc is ToGuest or FromGuest.
type copyFunc func(ctx context.Context, g transfer.Guest, src, dst string, opts ...transfer.Option) error

func TestBothWays(t *testing.T) {
	g := openGuest(t)
	for name, copyFiles := range map[string]copyFunc{"to": transfer.ToGuest, "from": transfer.FromGuest} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			content := strings.Repeat("some", 1<<20)
			if err := os.MkdirAll(dir+"/src/sub", 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, dir+"/src/sub/f", content)
			write(t, dir+"/src/g", "g")
			if err := os.Symlink("src/g", dir+"/link"); err != nil {
				t.Fatal(err)
			}
			var last, total int64
			calls := 0
			watch := transfer.OnBytes(func(done, all int64) {
				if calls++; done < last || all != int64(len(content)+1) {
					t.Errorf("%d of %d bytes after %d", done, all, last)
				}
				last, total = done, all
			})
			if err := copyFiles(t.Context(), g, dir+"/src", dir+"/dst", watch); err != nil {
				t.Fatal(err)
			}
			if last != total || calls < 10 {
				t.Errorf("told of %d of %d bytes in %d calls", last, total, calls)
			}
			wantFile(t, dir+"/dst/sub/f", content)
			wantFile(t, dir+"/dst/g", "g")
			if err := copyFiles(t.Context(), g, dir+"/src/.", dir+"/dst"); err != nil {
				t.Error(err)
			}
			if err := copyFiles(t.Context(), g, dir+"/link", dir+"/dst"); err != nil {
				t.Error(err)
			}
			if info, err := os.Lstat(dir + "/dst/link"); err != nil || info.Mode().Type() != fs.ModeSymlink {
				t.Errorf("the link: %v, %v", info, err)
			}
			if err := copyFiles(t.Context(), g, dir+"/link", dir+"/dst", transfer.FollowLink()); err != nil {
				t.Error(err)
			}
			if info, err := os.Lstat(dir + "/dst/link"); err != nil || !info.Mode().IsRegular() {
				t.Errorf("the link, followed: %v, %v", info, err)
			}
		})
	}
}

// Errors name what, where and why, whichever side they come from.
func TestErrors(t *testing.T) {
	g := openGuest(t)
	dir := t.TempDir()
	t.Chdir(dir)
	write(t, "big", strings.Repeat("x", 16<<20))
	if err := os.MkdirAll("d/big", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		copy     copyFunc
		src, dst string
		want     error
		says     string
	}{
		{transfer.ToGuest, "no", dir + "/x", fs.ErrNotExist, "copy no to the guest's " + dir + "/x: no such file or directory"},
		{transfer.ToGuest, "big", dir + "/no/x", fs.ErrNotExist, "copy big to the guest's " + dir + "/no/x: no such directory: " + dir + "/no"},
		{transfer.ToGuest, "d", dir + "/big", syscall.ENOTDIR, "copy d to the guest's " + dir + "/big: not a directory"},
		{transfer.ToGuest, "big", dir + "/d", syscall.EISDIR, "copy big to the guest's " + dir + "/d: " + dir + "/d/big: is a directory"},
		{transfer.FromGuest, dir + "/no", "x", fs.ErrNotExist, "copy the guest's " + dir + "/no to x: no such file or directory"},
		{transfer.FromGuest, dir + "/big", "no/x", fs.ErrNotExist, "copy the guest's " + dir + "/big to no/x: no such directory: no"},
		{transfer.FromGuest, dir + "/d", "big", syscall.ENOTDIR, "copy the guest's " + dir + "/d to big: not a directory"},
		{transfer.FromGuest, dir + "/big", "d", syscall.EISDIR, "copy the guest's " + dir + "/big to d: d/big: is a directory"},
	} {
		if err := c.copy(t.Context(), g, c.src, c.dst); !errors.Is(err, c.want) || err.Error() != c.says {
			t.Errorf("%s to %s:\n got %v\nwant %s", c.src, c.dst, err, c.says)
		}
	}
	if err := g.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCancel(t *testing.T) {
	for name, copyFiles := range map[string]copyFunc{"to": transfer.ToGuest, "from": transfer.FromGuest} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			g := openGuest(t) // it ends before the directory does, which it still tidies
			write(t, dir+"/f", "")
			if err := os.Truncate(dir+"/f", 1<<40); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err := copyFiles(ctx, g, dir+"/f", dir+"/copy", transfer.OnBytes(func(int64, int64) { cancel() }))
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			if _, err := os.Lstat(dir + "/copy"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("there is a copy: %v", err)
			}
		})
	}
}

// fakeGuest is one that says what it likes.
type fakeGuest func(in io.Reader, out io.Writer) error

func (f fakeGuest) Files(_ context.Context, _ guestapi.Files, in io.Reader, out io.Writer) error {
	return f(in, out)
}

// A guest that lies is found out.
func TestLyingGuest(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/f", strings.Repeat("x", 1<<20))
	var whole bytes.Buffer
	if err := archive.Pack(t.Context(), &whole, dir+"/f", archive.PackOptions{}); err != nil {
		t.Fatal(err)
	}
	gone := errors.New("gone")
	for name, c := range map[string]struct {
		guest fakeGuest
		want  error
	}{
		"half":          {func(_ io.Reader, out io.Writer) error { _, err := out.Write(whole.Bytes()[:1<<19]); return err }, archive.ErrMalformed},
		"nothing":       {func(io.Reader, io.Writer) error { return nil }, archive.ErrMalformed},
		"too much":      {func(_ io.Reader, out io.Writer) error { _, err := out.Write(append(whole.Bytes(), 1)); return err }, archive.ErrMalformed},
		"half and gone": {func(_ io.Reader, out io.Writer) error { _, _ = out.Write(whole.Bytes()[:1<<19]); return gone }, gone},
		"whole":         {func(_ io.Reader, out io.Writer) error { _, err := out.Write(whole.Bytes()); return err }, nil},
		"whole and gone": {func(_ io.Reader, out io.Writer) error {
			_, _ = out.Write(whole.Bytes())
			return gone
		}, gone},
	} {
		if err := transfer.FromGuest(t.Context(), c.guest, "/f", dir+"/copy"); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := transfer.ToGuest(t.Context(), fakeGuest(func(io.Reader, io.Writer) error { return nil }), dir+"/f", "/f"); err == nil {
		t.Error("the guest has taken nothing, and that is fine")
	}
}
