package machine

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/vmm"
)

// logOf is a VM's log as the one who writes it sees it.
type logOf struct {
	t    *testing.T
	path string
}

func (l logOf) append(text string) {
	l.t.Helper()
	file, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := file.WriteString(text); err != nil {
		l.t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		l.t.Fatal(err)
	}
}

func (l logOf) rotate() {
	l.t.Helper()
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		l.t.Fatal(err)
	}
}

func (l logOf) removeOlder() {
	l.t.Helper()
	if err := os.Remove(l.path + ".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		l.t.Fatal(err)
	}
}

// openLog makes a VM and opens its console log.
func openLog(t *testing.T, h *Host, opts LogOptions) *logReader {
	t.Helper()
	r, err := h.Logs(t.Context(), "vm", opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r.(*logReader)
}

// wantNext checks what there is to be read at the moment.
func wantNext(t *testing.T, r *logReader, want string) {
	t.Helper()
	var got strings.Builder
	buffer := make([]byte, 3)
	for {
		n, err := r.read(buffer)
		got.Write(buffer[:n])
		if err != nil {
			t.Fatalf("after %q: %v", got.String(), err)
		}
		if n == 0 {
			break
		}
	}
	if got.String() != want {
		t.Errorf("got %q, want %q", got.String(), want)
	}
}

func TestLogs(t *testing.T) {
	h, _ := newTestHost(t)
	makeVM(t, h, store.Record{Name: "vm"})
	all := func(opts LogOptions) string {
		t.Helper()
		text, err := io.ReadAll(openLog(t, h, opts))
		if err != nil {
			t.Error(err)
		}
		return string(text)
	}
	for _, source := range []LogSource{"", LogConsole, LogOwner} {
		if got := all(LogOptions{Source: source, Lines: 2}); got != "" {
			t.Errorf("a log that was never written: %q", got)
		}
	}
	console := logOf{t, filepath.Join(h.store.Dir("vm"), vmm.ConsoleLog)}
	console.append("one\ntwo\nthr")
	console.rotate()
	if got := all(LogOptions{Lines: 2}); got != "two\nthr" {
		t.Errorf("without a present part: %q", got)
	}
	console.append("ee\nfour\n")
	logOf{t, filepath.Join(h.store.Dir("vm"), OwnerLog)}.append("owned\n")
	for want, opts := range map[string]LogOptions{
		"one\ntwo\nthree\nfour\n":     {},
		"one\ntwo\nthree\nfour\n\x00": {Lines: 9},
		"three\nfour\n":               {Lines: 2},
		"four\n":                      {Source: LogConsole, Lines: 1},
		"owned\n":                     {Source: LogOwner},
	} {
		if want = strings.TrimSuffix(want, "\x00"); all(opts) != want {
			t.Errorf("%+v: %q, want %q", opts, all(opts), want)
		}
	}
	for _, c := range []struct {
		name string
		opts LogOptions
		want error
	}{
		{"other", LogOptions{}, store.ErrNotFound},
		{"../vms/vm", LogOptions{}, store.ErrInvalidName},
		{"vm", LogOptions{Source: "qemu"}, ErrInvalidOption},
		{"vm", LogOptions{Lines: -1}, ErrInvalidOption},
	} {
		if _, err := h.Logs(t.Context(), c.name, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%s %+v: %v, want %v", c.name, c.opts, err, c.want)
		}
	}
}

// TestLogIsAFile puts in the log's place what leads elsewhere or blocks.
func TestLogIsAFile(t *testing.T) {
	h, _ := newTestHost(t)
	makeVM(t, h, store.Record{Name: "vm"})
	path := filepath.Join(h.store.Dir("vm"), vmm.ConsoleLog)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, put := range map[string]func(string) error{
		"symbolic link": func(path string) error { return os.Symlink(secret, path) },
		"pipe":          func(path string) error { return unix.Mkfifo(path, 0o600) },
		"directory":     func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		for _, file := range []string{path, path + ".1"} {
			if err := put(file); err != nil {
				t.Fatal(err)
			}
			if r, err := h.Logs(t.Context(), "vm", LogOptions{}); err == nil {
				t.Errorf("a %s is read as a log", what)
				_ = r.Close()
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestFollow goes through all that happens to a log while it is followed.
func TestFollow(t *testing.T) {
	h, _ := newTestHost(t)
	claim := claimVM(t, h, store.Record{Name: "vm"})
	console := logOf{t, filepath.Join(h.store.Dir("vm"), vmm.ConsoleLog)}
	r := openLog(t, h, LogOptions{Follow: true})
	wantNext(t, r, "")
	console.append("begins")
	wantNext(t, r, "begins")
	wantNext(t, r, "")
	console.append(" and goes on")
	wantNext(t, r, " and goes on")

	// It is full: what was written until then comes first, even when the new one has not come yet.
	console.append("; ends")
	console.rotate()
	wantNext(t, r, "; ends")
	console.append("second")
	wantNext(t, r, "second")
	console.append(", its end")
	console.rotate()
	console.append("third")
	wantNext(t, r, ", its endthird")

	// It is full twice before somebody looks.
	console.append(", its end; ")
	console.rotate()
	console.append("fourth; ")
	console.rotate()
	console.append("fifth")
	wantNext(t, r, ", its end; fourth; fifth")

	// A start empties it, or replaces it.
	console.removeOlder()
	if err := os.Truncate(console.path, 0); err != nil {
		t.Fatal(err)
	}
	console.append("new")
	wantNext(t, r, "new")
	console.append("er")
	wantNext(t, r, "er")
	if err := os.Remove(console.path); err != nil {
		t.Fatal(err)
	}
	console.append("a longer log than the one before")
	wantNext(t, r, "a longer log than the one before")

	// The VM gets another name.
	if err := claim.Rename(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
	console.path = filepath.Join(h.store.Dir("other"), vmm.ConsoleLog)
	console.append("renamed")
	wantNext(t, r, "renamed")

	console.append("last words")
	if err := claim.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "last words" {
		t.Errorf("after the VM is gone: %q, %v", rest, err)
	}
}

// TestFollowLastLines begins with the last lines.
func TestFollowLastLines(t *testing.T) {
	h, _ := newTestHost(t)
	makeVM(t, h, store.Record{Name: "vm"})
	console := logOf{t, filepath.Join(h.store.Dir("vm"), vmm.ConsoleLog)}
	console.append("one\ntwo\nthree")
	r := openLog(t, h, LogOptions{Follow: true, Lines: 1})
	wantNext(t, r, "three")
	console.append("\nfour\n")
	wantNext(t, r, "\nfour\n")
}

// TestFollowWaits ends readers that wait: one by its context, one by Close.
func TestFollowWaits(t *testing.T) {
	h, _ := newTestHost(t)
	makeVM(t, h, store.Record{Name: "vm"})
	ctx, cancel := context.WithCancel(t.Context())
	console := logOf{t, filepath.Join(h.store.Dir("vm"), vmm.ConsoleLog)}
	for want, end := range map[error]func(io.Closer) error{
		context.Canceled: func(io.Closer) error { cancel(); return nil },
		os.ErrClosed:     func(r io.Closer) error { return r.Close() },
	} {
		watched := t.Context()
		if errors.Is(want, context.Canceled) {
			watched = ctx
		}
		r, err := h.Logs(watched, "vm", LogOptions{Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		console.append("x")
		began, ended := make(chan struct{}), make(chan error)
		go func() {
			if _, err := io.ReadFull(r, make([]byte, 1)); err == nil {
				close(began)
			}
			// There may be more: it is the log of the other case too.
			_, err := io.Copy(io.Discard, r)
			ended <- err
		}()
		<-began
		if err := end(r); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
		if err := errors.Join(r.Close(), r.Close()); err != nil {
			t.Errorf("closed again: %v", err)
		}
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("read after Close: %v", err)
		}
	}
}
