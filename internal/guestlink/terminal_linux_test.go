package guestlink

import (
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"syscall"
	"testing"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// typist is a command in a terminal, and who sits at it.
type typist struct {
	process *Process
	out     *watched
	in      *io.PipeWriter
}

func startTyping(t *testing.T, ctx context.Context, l *Link, e guestapi.Exec) *typist {
	t.Helper()
	if e.Terminal == nil {
		e.Terminal = &guestapi.Terminal{Term: "xterm-test", Columns: 82, Rows: 41}
	}
	read, write := io.Pipe()
	t.Cleanup(func() { write.Close() })
	s := &typist{out: newWatched(), in: write}
	var err error
	if s.process, err = l.Start(ctx, e, read, s.out, s.out); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *typist) write(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(s.in, text); err != nil {
		t.Fatal(err)
	}
}

func TestExecTerminal(t *testing.T) {
	l := newLink(t)
	e := sh(`trap 'echo resized; stty size' WINCH; test -t 0 && test -t 1 && test -t 2 && echo all; stty size </dev/tty; echo $TERM >&2; until [ "$line" = typed ]; do read line; done; echo "[$line]"; exit 5`)
	s := startTyping(t, t.Context(), l, e)
	s.out.await(t, "all\r\n41 82\r\nxterm-test\r\n")
	if err := s.process.Resize(20, 10); err != nil {
		t.Fatal(err)
	}
	s.out.await(t, "resized\r\n10 20\r\n")
	s.write(t, "typed\n")
	if status, err := s.process.Wait(); err != nil || status != (guestapi.ExitStatus{Code: 5}) {
		t.Errorf("got %+v, %v", status, err)
	}
	if text := s.out.await(t, "[typed]\r\n"); !strings.Contains(text, "typed\r\n[") {
		t.Errorf("no echo in %q", text)
	}
	if err := s.process.Resize(1, 1); err != nil {
		t.Errorf("resize after the end: %v", err)
	}
	for _, size := range [][2]int{{-1, 1}, {1, -1}, {math.MaxUint16 + 1, 1}, {1, math.MaxUint16 + 1}} {
		if s.process.Resize(size[0], size[1]) == nil {
			t.Errorf("resized to %v", size)
		}
	}
	// One that asks for what there cannot be gets what there can.
	odd := guestapi.Exec{Argv: []string{"stty", "size"}, Terminal: &guestapi.Terminal{Columns: -5, Rows: 1 << 20}}
	if r := run(t, l, odd, nil); r.stdout.String() != "65535 0\r\n" {
		t.Errorf("an odd size: %q", &r.stdout)
	}
	if r := run(t, l, sh("test -t 0 || test -t 1 || test -t 2"), nil); r.status.Code != 1 {
		t.Errorf("a terminal although none was wanted: %+v", r.status)
	}
}

// What is typed has the meaning that the terminal gives it.
func TestExecTerminalInterrupt(t *testing.T) {
	l := newLink(t)
	s := startTyping(t, t.Context(), l, sh("echo ready; exec sleep 60"))
	s.out.await(t, "ready\r\n")
	s.write(t, "\x03")
	if status, err := s.process.Wait(); err != nil || status != (guestapi.ExitStatus{Code: 130, Signal: "INT"}) {
		t.Errorf("Ctrl-C: %+v, %v", status, err)
	}
	// It closes its terminal before it ends, and is not hung up on in between.
	for range 50 {
		s = startTyping(t, t.Context(), l, guestapi.Exec{Argv: []string{"cat"}})
		s.write(t, "\x04")
		if status, err := s.process.Wait(); err != nil || status != (guestapi.ExitStatus{}) {
			t.Fatalf("Ctrl-D: %+v, %v", status, err)
		}
	}
	s = startTyping(t, t.Context(), l, sh("echo ready; exec sleep 60"))
	s.out.await(t, "ready\r\n")
	if err := s.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status, err := s.process.Wait(); err != nil || status.Signal != "TERM" {
		t.Errorf("a signal: %+v, %v", status, err)
	}
}

func TestExecTerminalHangUp(t *testing.T) {
	for name, end := range map[string]func(l *Link, cancel func()){
		"cancel":  func(_ *Link, cancel func()) { cancel() },
		"hang up": func(l *Link, _ func()) { l.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLink(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s := startTyping(t, ctx, l, sh("echo pid=$$.; sleep 60; true"))
			_, pid, _ := strings.Cut(s.out.await(t, ".\r\n"), "pid=")
			end(l, cancel)
			if _, err := s.process.Wait(); !errors.Is(err, context.Canceled) && !errors.Is(err, ErrLost) {
				t.Errorf("got %v", err)
			}
			awaitGone(t, strings.TrimSuffix(strings.TrimSpace(pid), "."))
		})
	}
}

// Without a program it is the user's login shell.
func TestExecShell(t *testing.T) {
	l := newLink(t)
	s := startTyping(t, t.Context(), l, guestapi.Exec{Env: []string{"PS1=", "ENV="}})
	s.write(t, "stty -echo; echo $((40+2)) $0 $HOME $USER $TERM; exit 7\n")
	s.out.await(t, "42 -")
	s.out.await(t, " /root root xterm-test\r\n")
	if status, err := s.process.Wait(); err != nil || status.Code != 7 {
		t.Errorf("got %+v, %v", status, err)
	}
	if r := run(t, l, guestapi.Exec{}, strings.NewReader("echo piped\n")); !strings.Contains(r.stdout.String(), "piped\n") {
		t.Errorf("without a terminal: %q, %q", &r.stdout, &r.stderr)
	}
	var start *StartError
	if _, err := l.Start(t.Context(), guestapi.Exec{Dir: "/no/such"}, nil, nil, nil); !errors.As(err, &start) || start.Program != "login shell" {
		t.Errorf("got %v", err)
	}
}

func TestExecUser(t *testing.T) {
	l := newLink(t)
	ids := `echo $(id -u):$(id -g):$(id -G | tr ' ' ,) $HOME $USER $LOGNAME $SHELL; pwd; echo err >/dev/stderr; echo out >/dev/stdout`
	for who, want := range map[string]string{
		"daemon":    "1:1:1 /usr/sbin daemon daemon /usr/sbin/nologin\n/usr/sbin\nout\n",
		"1":         "1:1:1 /usr/sbin daemon daemon /usr/sbin/nologin\n/usr/sbin\nout\n",
		"daemon:3":  "1:3:3 /usr/sbin daemon daemon /usr/sbin/nologin\n/usr/sbin\nout\n",
		"4242:tty":  "4242:5:5 / 4242 4242 /bin/sh\n/\nout\n",
		"root:root": "0:0:0 /root root root /bin/bash\n/root\nout\n",
	} {
		e := sh(ids)
		e.User = who
		if r := run(t, l, e, nil); r.stdout.String() != want || r.stderr.String() != "err\n" {
			t.Errorf("%s: %q, %q; want %q", who, &r.stdout, &r.stderr, want)
		}
	}
	e := sh(`echo $(id -u) >$(tty)`) // the terminal is the user's own
	e.User, e.Terminal = "daemon", &guestapi.Terminal{Columns: 80, Rows: 24}
	if r := run(t, l, e, nil); r.stdout.String() != "1\r\n" {
		t.Errorf("in a terminal: %q", &r.stdout)
	}
	e = sh("true")
	e.User = "no-such-user"
	var start *StartError
	if _, err := l.Start(t.Context(), e, nil, nil, nil); !errors.As(err, &start) || !strings.Contains(err.Error(), `unknown user "no-such-user"`) {
		t.Errorf("got %v", err)
	}
}

// A detached command outlives the channel, the link and the host; its output, and that
// of what it leaves behind, is on the console.
func TestExecDetach(t *testing.T) {
	system := newFakeSystem()
	p := startGuest(t, system)
	l := dial(t, p)
	ctx, cancel := context.WithCancel(t.Context())
	order := t.TempDir() + "/order"
	fifo := makeFIFO(t, order)
	e := sh("echo started; read line <" + order + "; echo $line; (while kill -0 $$; do :; done 2>&-; echo left >&2) & exit 3")
	e.Detach = true
	process, err := l.Start(ctx, e, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if status, err := process.Wait(); err != nil || status != (guestapi.ExitStatus{}) {
		t.Errorf("got %+v, %v", status, err)
	}
	system.console.await(t, "started\n")
	cancel()
	l.Close()
	l = dial(t, p) // the guest has seen the end of the link before
	if err := l.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := fifo.WriteString("went on\n"); err != nil {
		t.Fatal(err)
	}
	system.console.await(t, "went on\nleft\n")
	select {
	case <-system.off:
		t.Error("the guest powers off")
	default:
	}
	for name, bad := range map[string]guestapi.Exec{
		"terminal":    {Argv: []string{"true"}, Detach: true, Terminal: &guestapi.Terminal{}},
		"power off":   {Argv: []string{"true"}, PowerOff: true},
		"no program":  {Argv: []string{"/no/such"}, Detach: true},
		"unknown dir": {Argv: []string{"true"}, Detach: true, Dir: "/no/such"},
	} {
		var start *StartError
		if _, err := l.Start(t.Context(), bad, nil, nil, nil); !errors.As(err, &start) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestExecPowerOff(t *testing.T) {
	system := newFakeSystem()
	l := dial(t, startGuest(t, system))
	e := sh("echo last words; sleep 30 & echo pid=$!.; kill -TERM $$")
	e.Detach, e.PowerOff = true, true
	if r := run(t, l, e, nil); r.status != (guestapi.ExitStatus{}) {
		t.Errorf("got %+v", r.status)
	}
	<-system.off
	text := system.console.await(t, "last words\n") // before it powers off
	_, pid, _ := strings.Cut(text, "pid=")
	kill(t, strings.TrimSuffix(strings.TrimSpace(pid), "."))
}
