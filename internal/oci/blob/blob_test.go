package blob

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, s *Store, data string) Digest {
	t.Helper()
	d := Of([]byte(data))
	if err := s.Put(t.Context(), d, []byte(data)); err != nil {
		t.Fatal(err)
	}
	return d
}

func read(t *testing.T, s *Store, d Digest) (string, error) {
	t.Helper()
	r, err := s.Open(d)
	if err != nil {
		return "", err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return string(data), err
}

func begin(t *testing.T, s *Store, d Digest) *Writer {
	t.Helper()
	w, err := s.Begin(t.Context(), d, nil)
	if err != nil || w == nil {
		t.Fatalf("begin: %v, %v", w, err)
	}
	return w
}

func write(t *testing.T, w *Writer, text string) {
	t.Helper()
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// damage changes a byte of a blob behind the store's back.
func damage(t *testing.T, s *Store, d Digest) {
	t.Helper()
	path := s.path(d)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[0] ^= 1
	if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, data, 0)); err != nil {
		t.Fatal(err)
	}
}

func wantNoPartials(t *testing.T, s *Store) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.dir, partialDir))
	if err != nil || len(entries) != 0 {
		t.Errorf("partial files remain: %v, %v", entries, err)
	}
}

func TestPutAndRead(t *testing.T) {
	s := open(t, t.TempDir())
	d := put(t, s, "content")
	if !s.Has(d) {
		t.Error("it is not there")
	}
	if text, err := read(t, s, d); text != "content" || err != nil {
		t.Errorf("read %q, %v", text, err)
	}
	put(t, s, "content")
	put(t, s, "")
	long := sha512.Sum512([]byte("long"))
	d512 := Digest("sha512:" + hex.EncodeToString(long[:]))
	if err := s.Put(t.Context(), d512, []byte("long")); err != nil {
		t.Error(err)
	}
	if text, err := read(t, open(t, s.dir), d512); text != "long" || err != nil {
		t.Errorf("read %q, %v", text, err)
	}
	list, err := s.List()
	if err != nil || len(list) != 3 || list[2] != (Info{d512, 4}) {
		t.Errorf("list %v, %v", list, err)
	}
	if u, err := s.Usage(); err != nil || u != (Usage{Blobs: 3, Bytes: 11}) {
		t.Errorf("usage %+v, %v", u, err)
	}
	info, err := os.Stat(s.path(d))
	if err != nil || info.Mode() != 0o400 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	wantNoPartials(t, s)
}

func TestAbsent(t *testing.T) {
	s := open(t, t.TempDir())
	d := Of([]byte("nobody wrote this"))
	if s.Has(d) {
		t.Error("it is there")
	}
	if _, err := s.Open(d); !errors.Is(err, ErrNotFound) {
		t.Errorf("open: %v", err)
	}
	if err := s.Verify(t.Context(), d); !errors.Is(err, ErrNotFound) {
		t.Errorf("verify: %v", err)
	}
	if err := s.CheckSize(t.Context(), d, 3); err != nil {
		t.Errorf("check size: %v", err)
	}
	if err := s.Put(t.Context(), d, []byte("another")); !errors.Is(err, ErrDigest) {
		t.Errorf("put: %v", err)
	}
	wantNoPartials(t, s)
}

// TestResume: what a writer leaves is gone on from, by a store that another process may have.
func TestResume(t *testing.T) {
	s := open(t, t.TempDir())
	d := Of([]byte("first second"))
	w := begin(t, s, d)
	write(t, w, "first ")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if s.Has(d) {
		t.Error("half of it counts as whole")
	}
	if u, err := s.Usage(); err != nil || u.Partial != 6 {
		t.Errorf("usage %+v, %v", u, err)
	}
	w = begin(t, open(t, s.dir), d)
	if n, err := w.Resume(t.Context(), 12); n != 6 || err != nil {
		t.Fatalf("resumed at %d, %v", n, err)
	}
	write(t, w, "second")
	if err := errors.Join(w.Commit(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if text, err := read(t, s, d); text != "first second" || err != nil {
		t.Errorf("read %q, %v", text, err)
	}
	wantNoPartials(t, s)
}

// TestWrongContent: what does not match is never a blob, and nothing of it is gone on from.
func TestWrongContent(t *testing.T) {
	s := open(t, t.TempDir())
	d := Of([]byte("right"))
	w := begin(t, s, d)
	write(t, w, "wrong")
	if err := w.Commit(); !errors.Is(err, ErrDigest) {
		t.Errorf("commit: %v", err)
	}
	if w.Size() != 0 {
		t.Errorf("%d bytes of it remain", w.Size())
	}
	write(t, w, "right and more")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w = begin(t, s, d)
	if n, err := w.Resume(t.Context(), 5); n != 0 || err != nil {
		t.Errorf("resumed at %d of more than there can be, %v", n, err)
	}
	write(t, w, "right")
	if err := errors.Join(w.Commit(), w.Close()); err != nil {
		t.Error(err)
	}
}

func TestDamaged(t *testing.T) {
	s := open(t, t.TempDir())
	d := put(t, s, "content")
	if err := s.Verify(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	damage(t, s, d)
	if _, err := read(t, s, d); !errors.Is(err, ErrDamaged) {
		t.Errorf("read: %v", err)
	}
	if err := s.Verify(t.Context(), d); !errors.Is(err, ErrDamaged) {
		t.Errorf("verify: %v", err)
	}
	if s.Has(d) {
		t.Error("it is still there")
	}
	put(t, s, "content")
	if err := s.CheckSize(t.Context(), d, 7); err != nil || !s.Has(d) {
		t.Errorf("a blob of the right size: %v, there: %v", err, s.Has(d))
	}
	if err := s.CheckSize(t.Context(), d, 8); err != nil || s.Has(d) {
		t.Errorf("a blob of another size: %v, there: %v", err, s.Has(d))
	}
	wantNoPartials(t, s)
}

// TestOneWriter has many want to write the same blob at once.
func TestOneWriter(t *testing.T) {
	dir := t.TempDir()
	d := Of([]byte("content"))
	var wrote, waited atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		s := open(t, dir)
		all.Go(func() {
			w, err := s.Begin(t.Context(), d, func() { waited.Add(1) })
			if err != nil || w == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wrote.Add(1)
			_, err = w.Write([]byte("content"))
			if err := errors.Join(err, w.Commit(), w.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := wrote.Load(); n != 1 {
		t.Errorf("written %d times, waited for %d times", n, waited.Load())
	}
	wantNoPartials(t, open(t, dir))
}

func TestWaitCalledOff(t *testing.T) {
	s := open(t, t.TempDir())
	d := Of([]byte("content"))
	w := begin(t, s, d)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := s.Begin(ctx, d, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	wantNoPartials(t, s)
}

func TestPrune(t *testing.T) {
	s := open(t, t.TempDir())
	kept, dropped := put(t, s, "kept"), put(t, s, "dropped")
	w := begin(t, s, Of([]byte("partial")))
	write(t, w, "par")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	keep := func(d Digest) bool { return d == kept }
	hold, err := open(t, s.dir).Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Prune(t.Context(), keep); n != 0 || !errors.Is(err, ErrBusy) {
		t.Errorf("with a hold it freed %d, %v", n, err)
	}
	if !s.Has(dropped) {
		t.Error("a blob that is counted on was removed")
	}
	if err := hold.Close(); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := s.Prune(ended, keep); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("called off, it freed %d, %v", n, err)
	}
	if n, err := s.Prune(t.Context(), keep); n != 10 || err != nil {
		t.Errorf("it freed %d, %v", n, err)
	}
	if !s.Has(kept) || s.Has(dropped) {
		t.Errorf("kept: %v, dropped: %v", s.Has(kept), !s.Has(dropped))
	}
	wantNoPartials(t, s)
}

// TestNoSpace: what was written stays, and is gone on from when there is space.
func TestNoSpace(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	s := open(t, dir)
	data := bytes.Repeat([]byte("0123456789abcdef"), 2<<16)
	d := Of(data)
	w := begin(t, s, d)
	n, err := w.Write(data)
	if !errors.Is(err, syscall.ENOSPC) || n == 0 || w.Size() != int64(n) {
		t.Fatalf("wrote %d, %v", n, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=4m"); err != nil {
		t.Fatal(err)
	}
	w = begin(t, s, d)
	at, err := w.Resume(t.Context(), int64(len(data)))
	if at != int64(n) || err != nil {
		t.Fatalf("resumed at %d of %d, %v", at, n, err)
	}
	write(t, w, string(data[at:]))
	if err := errors.Join(w.Commit(), w.Close()); err != nil {
		t.Error(err)
	}
}

func TestScratch(t *testing.T) {
	s := open(t, t.TempDir())
	file, err := s.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	wantNoPartials(t, s)
}

func TestNoDirectory(t *testing.T) {
	if _, err := Open("/dev/null/cache"); err == nil {
		t.Error("it opened")
	}
}

func FuzzParseDigest(f *testing.F) {
	f.Add("sha256:" + strings.Repeat("0a", 32))
	f.Add("sha512:" + strings.Repeat("0a", 64))
	f.Add("md5:d41d8cd98f00b204e9800998ecf8427e")
	f.Add("sha256:../../etc/passwd")
	s := &Store{dir: "/cache"}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseDigest(text)
		if err != nil {
			if !errors.Is(err, ErrAlgorithm) {
				t.Error(err)
			}
			return
		}
		if filepath.Dir(s.path(d)) != "/cache/blobs/"+d.algorithm() || filepath.Dir(s.partialPath(d)) != "/cache/partial" {
			t.Errorf("%q is at %s", d, s.path(d))
		}
	})
}
