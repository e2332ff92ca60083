package guestlink

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

type result struct {
	stdout, stderr bytes.Buffer
	status         guestapi.ExitStatus
}

func run(t testing.TB, l *Link, e guestapi.Exec, stdin io.Reader) *result {
	t.Helper()
	r := &result{}
	p, err := l.Start(t.Context(), e, stdin, &r.stdout, &r.stderr)
	if err != nil {
		t.Fatal(err)
	}
	if r.status, err = p.Wait(); err != nil {
		t.Fatal(err)
	}
	return r
}

func sh(line string) guestapi.Exec {
	return guestapi.Exec{Argv: []string{"/bin/sh", "-c", line}}
}

func TestExec(t *testing.T) {
	l := newLink(t)
	dir := t.TempDir()
	script := filepath.Join(dir, "here")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho found\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		exec           guestapi.Exec
		stdin          io.Reader
		stdout, stderr string
		status         guestapi.ExitStatus
	}{
		"output apart":     {exec: sh("echo out; echo err >&2; exit 3"), stdout: "out\n", stderr: "err\n", status: guestapi.ExitStatus{Code: 3}},
		"no quoting":       {exec: guestapi.Exec{Argv: []string{"printf", "%s|", "a b", "$HOME", "", "'\"\\\n"}}, stdout: "a b|$HOME||'\"\\\n|"},
		"directory":        {exec: guestapi.Exec{Argv: []string{"pwd"}, Dir: dir}, stdout: dir + "\n"},
		"home":             {exec: guestapi.Exec{Argv: []string{"pwd"}}, stdout: "/root\n"},
		"environment":      {exec: guestapi.Exec{Argv: []string{"/bin/sh", "-c", "echo $A-$HOME-$USER"}, Env: []string{"A=1", "A=2", "HOME=/x"}}, stdout: "2-/x-root\n"},
		"its own PATH":     {exec: guestapi.Exec{Argv: []string{"here"}, Env: []string{"PATH=/nowhere:" + dir + ":/bin:/usr/bin"}}, stdout: "found\n"},
		"relative program": {exec: guestapi.Exec{Argv: []string{"./here"}, Dir: dir}, stdout: "found\n"},
		"no input":         {exec: guestapi.Exec{Argv: []string{"cat"}}},
		"input":            {exec: guestapi.Exec{Argv: []string{"cat"}}, stdin: strings.NewReader("hello"), stdout: "hello"},
		"input not read":   {exec: guestapi.Exec{Argv: []string{"true"}}, stdin: endless{}},
		"killed":           {exec: sh("kill -KILL $$"), status: guestapi.ExitStatus{Code: 137, Signal: "KILL"}},
		"killed by number": {exec: sh("kill -40 $$"), status: guestapi.ExitStatus{Code: 168, Signal: "40"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := run(t, l, c.exec, c.stdin)
			if r.stdout.String() != c.stdout || r.stderr.String() != c.stderr || r.status != c.status {
				t.Errorf("got %q, %q, %+v; want %q, %q, %+v", &r.stdout, &r.stderr, r.status, c.stdout, c.stderr, c.status)
			}
		})
	}
}

// brokenReader is a reader that fails.
type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// endless is a reader without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestExecCannotStart(t *testing.T) {
	l := newLink(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		exec guestapi.Exec
		want error
		says string
	}{
		"unknown program":   {guestapi.Exec{Argv: []string{"no-such-program"}}, fs.ErrNotExist, `"no-such-program"`},
		"unknown path":      {guestapi.Exec{Argv: []string{"/no/such"}}, fs.ErrNotExist, `"/no/such"`},
		"not executable":    {guestapi.Exec{Argv: []string{file}}, fs.ErrPermission, file},
		"unknown directory": {guestapi.Exec{Argv: []string{"true"}, Dir: "/no/dir"}, fs.ErrNotExist, "/no/dir"},
		"file as directory": {guestapi.Exec{Argv: []string{"true"}, Dir: file}, nil, "not a directory"},
		"empty argument 0":  {guestapi.Exec{Argv: []string{""}}, nil, `""`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := l.Start(t.Context(), c.exec, nil, nil, nil)
			var start *StartError
			if !errors.As(err, &start) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v", err)
			}
			if c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%v is not %v", err, c.want)
			}
			if err := l.Ping(t.Context()); err != nil {
				t.Errorf("the link suffered: %v", err)
			}
		})
	}
	big := guestapi.Exec{Argv: []string{"true", strings.Repeat("x", guestapi.MaxPayload)}}
	if _, err := l.Start(t.Context(), big, nil, nil, nil); !errors.Is(err, unix.E2BIG) {
		t.Errorf("too long a command: got %v", err)
	}
	if r := run(t, l, guestapi.Exec{Argv: []string{"true", strings.Repeat("x", 120<<10)}}, nil); r.status.Code != 0 {
		t.Errorf("a long command: %+v", r.status)
	}
}

func TestExecBigStreams(t *testing.T) {
	l := newLink(t)
	const size = 64 << 20
	sum := sha256.New()
	up := io.TeeReader(io.LimitReader(noise(), size), sum)
	out := sha256.New()
	p, err := l.Start(t.Context(), guestapi.Exec{Argv: []string{"cat"}}, up, out, nil)
	if err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); err != nil || status.Code != 0 {
		t.Fatal(status, err)
	}
	if want, got := hex.EncodeToString(sum.Sum(nil)), hex.EncodeToString(out.Sum(nil)); want != got {
		t.Errorf("sum of what came back is %s, want %s", got, want)
	}
}

// noise is a reader of bytes that do not repeat.
func noise() io.Reader { return rand.NewChaCha8([32]byte{}) }

// Everything that the command itself wrote is there, however quickly it ended.
func TestExecOutputIsComplete(t *testing.T) {
	l := newLink(t)
	for range 30 {
		r := run(t, l, sh("head -c 60000 /dev/zero & wait; head -c 60000 /dev/zero >&2; sleep 30 & echo $! >&2"), nil)
		rest := r.stderr.Bytes()
		if r.stdout.Len() != 60000 || len(rest) <= 60000 {
			t.Fatalf("got %d and %d bytes", r.stdout.Len(), len(rest))
		}
		kill(t, string(rest[60000:]))
	}
}

func kill(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(pid))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(n, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// makeFIFO makes a named pipe, which is open for both directions until the test ends.
func makeFIFO(t *testing.T, path string) *os.File {
	t.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// A server that is left in the background does not hold its command, and lives on
// though it logs far more than a pipe holds.
func TestExecBackground(t *testing.T) {
	l := newLink(t)
	dir := t.TempDir()
	order, answers := makeFIFO(t, filepath.Join(dir, "order")), makeFIFO(t, filepath.Join(dir, "answer"))
	server := "{ read line <order; head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; echo lives >answer; }"
	e := sh(server + " & echo started")
	e.Dir = dir
	if r := run(t, l, e, nil); r.stdout.String() != "started\n" {
		t.Fatalf("got %q", &r.stdout)
	}
	if _, err := order.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
	if err := answers.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 6)
	if _, err := io.ReadFull(answers, answer); err != nil || string(answer) != "lives\n" {
		t.Errorf("the server in the background answers %q, %v", answer, err)
	}
}

func TestExecSignal(t *testing.T) {
	l := newLink(t)
	out := newWatched()
	p, err := l.Start(t.Context(), sh("trap 'echo got; exit 7' TERM; while :; do sh -c 'echo ready; exec sleep 30'; done"), nil, out, nil)
	if err != nil {
		t.Fatal(err)
	}
	out.await(t, "ready\n")
	// To the whole group: else the shell would first wait for its sleep.
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); err != nil || status != (guestapi.ExitStatus{Code: 7}) {
		t.Errorf("got %+v, %v", status, err)
	}
	out.await(t, "ready\ngot\n")
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("signal after the end: %v", err)
	}
}

// watched is a buffer whose content can be waited for.
type watched struct {
	mu     sync.Mutex
	change *sync.Cond
	buf    bytes.Buffer
}

func newWatched() *watched {
	w := &watched{}
	w.change = sync.NewCond(&w.mu)
	return w
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.change.Broadcast()
	return w.buf.Write(p)
}

func (w *watched) await(t testing.TB, want string) string {
	t.Helper()
	timeout := time.AfterFunc(10*time.Second, w.change.Broadcast)
	deadline := time.Now().Add(10 * time.Second)
	defer timeout.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	for !strings.Contains(w.buf.String(), want) {
		if !time.Now().Before(deadline) {
			t.Fatalf("got %q, want %q in it", w.buf.String(), want)
		}
		w.change.Wait()
	}
	return w.buf.String()
}

// awaitGone waits until no process has the number.
func awaitGone(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(pid))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(n, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	for errors.Is(err, unix.EINTR) {
		ready, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	}
	if err != nil || ready == 0 {
		t.Errorf("process %d lives on: %v", n, err)
	}
}

func TestExecCancelKillsGroup(t *testing.T) {
	for name, end := range map[string]func(l *Link, cancel func()){
		"cancel":  func(_ *Link, cancel func()) { cancel() },
		"hang up": func(l *Link, _ func()) { l.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLink(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			out := newWatched()
			p, err := l.Start(ctx, sh("setsid sh -c 'echo out $$; exec sleep 60' & sleep 60 & echo in $!; echo self $$; wait"), nil, out, nil)
			if err != nil {
				t.Fatal(err)
			}
			pids := make(map[string]string)
			for _, who := range []string{"out", "in", "self"} {
				_, rest, _ := strings.Cut(out.await(t, who+" "), who+" ")
				pids[who], _, _ = strings.Cut(rest, "\n") // a line is one write
			}
			end(l, cancel)
			if _, err := p.Wait(); err == nil || name == "cancel" && !errors.Is(err, context.Canceled) || name == "hang up" && !errors.Is(err, ErrLost) {
				t.Errorf("got %v", err)
			}
			awaitGone(t, pids["in"])
			awaitGone(t, pids["self"])
			kill(t, pids["out"]) // lives on: it left the group
		})
	}
}

// What cannot be written ends the command; a reader that is slow holds nobody else.
func TestExecWriters(t *testing.T) {
	l := newLink(t)
	broken := errors.New("disk full")
	p, err := l.Start(t.Context(), sh("while :; do echo line; done"), nil, writerFunc(func([]byte) (int, error) { return 0, broken }), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}

	release := make(chan struct{})
	blocked := make(chan struct{})
	var once sync.Once
	var got int
	slow, err := l.Start(t.Context(), sh("head -c 20000000 /dev/zero"), nil, writerFunc(func(p []byte) (int, error) {
		once.Do(func() { close(blocked) })
		<-release
		got += len(p)
		return len(p), nil
	}), nil)
	if err != nil {
		t.Fatal(err)
	}
	<-blocked
	if r := run(t, l, sh("head -c 5000000 /dev/zero"), nil); r.stdout.Len() != 5000000 {
		t.Errorf("beside a slow reader: got %d bytes", r.stdout.Len())
	}
	close(release)
	if status, err := slow.Wait(); err != nil || status.Code != 0 || got != 20000000 {
		t.Errorf("slow reader: %+v, %v, %d bytes", status, err, got)
	}

	var both bytes.Buffer // not safe for two goroutines: the race detector looks
	if p, err = l.Start(t.Context(), sh("for i in 1 2 3 4 5 6 7 8; do echo out; echo err >&2; done"), nil, &both, &both); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); err != nil || both.Len() != 64 {
		t.Errorf("one writer for both: %q, %v", &both, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestExecConcurrently(t *testing.T) {
	l := newLink(t)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			r := &result{}
			p, err := l.Start(t.Context(), sh(fmt.Sprintf("cat; echo %d >&2; exit %d", i, i)), strings.NewReader(strings.Repeat(strconv.Itoa(i), 10000)), &r.stdout, &r.stderr)
			if err != nil {
				t.Error(err)
				return
			}
			status, err := p.Wait()
			if err != nil || status.Code != i || r.stderr.String() != fmt.Sprintln(i) || r.stdout.String() != strings.Repeat(strconv.Itoa(i), 10000) {
				t.Errorf("command %d: %+v, %v, %q", i, status, err, &r.stderr)
			}
		})
	}
	wg.Wait()
}

// Nothing stays open in the guest after commands of all sorts.
func TestExecLeavesNoFiles(t *testing.T) {
	l := newLink(t)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	some := func() {
		run(t, l, sh("echo x"), nil)
		run(t, l, sh("cat"), strings.NewReader("x"))
		run(t, l, sh("true"), endless{})
		if _, err := l.Start(t.Context(), guestapi.Exec{Argv: []string{"/no/such"}}, strings.NewReader("x"), nil, nil); err == nil {
			t.Error("started what is not there")
		}
		run(t, l, guestapi.Exec{Argv: []string{"true"}, Terminal: &guestapi.Terminal{}}, strings.NewReader("x"))
		run(t, l, guestapi.Exec{Argv: []string{"true"}, Detach: true}, nil)
		for _, op := range []guestapi.FilesOp{guestapi.FilesRead, guestapi.FilesPack, guestapi.FilesWrite, guestapi.FilesUnpack} {
			broken := writerFunc(func([]byte) (int, error) { return 0, io.ErrClosedPipe })
			for _, path := range []string{"/etc/passwd", "/no/such"} {
				_ = l.Files(t.Context(), guestapi.Files{Op: op, Path: path}, brokenReader{}, broken)
			}
		}
	}
	some()
	before := count()
	for range 20 {
		some()
	}
	deadline := time.Now().Add(10 * time.Second)
	for count() > before {
		if time.Now().After(deadline) {
			t.Fatalf("%d files are open, %d were before", count(), before)
		}
		run(t, l, sh("true"), nil)
	}
}
