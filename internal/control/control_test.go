package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"os"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/machine"
	"github.com/smolvm/smolvm/internal/sockdir"
)

// fakeVM is a target that does as it is told. What it is not told it panics over.
type fakeVM struct {
	target
	info    machine.Info
	err     error         // of all verbs
	waits   chan struct{} // gets a token when a wait begins and another when it ends
	stops   chan struct{} // the same for the begin of a stop, which then waits for killed
	killed  chan struct{}
	stop    machine.StopOptions
	stopped chan error // gets the state of the stop's context
	run     func(ctx context.Context, c machine.Command) (machine.Process, error)
	expose  func(reqs []forward.Request) []forward.Forward
	events  []forward.Event
	files   func(op guestapi.Files, in io.Reader, out io.Writer) error
	dial    func(address string) (net.Conn, error)
	env     machine.EnvChange
}

func (f *fakeVM) Info(context.Context) (machine.Info, error) { return f.info, f.err }

func (f *fakeVM) Wait(ctx context.Context) (*machine.MainInfo, error) {
	if f.waits == nil {
		return f.info.Main, f.err
	}
	f.waits <- struct{}{}
	<-ctx.Done()
	f.waits <- struct{}{}
	return nil, ctx.Err()
}

func (f *fakeVM) Stop(ctx context.Context, opts machine.StopOptions) error {
	f.stop = opts
	if f.stops == nil {
		return f.err
	}
	f.stops <- struct{}{}
	<-f.killed
	f.stopped <- ctx.Err()
	return f.err
}

func (f *fakeVM) Kill(context.Context) error {
	close(f.killed)
	return f.err
}

func (f *fakeVM) StartCommand(ctx context.Context, c machine.Command) (machine.Process, error) {
	return f.run(ctx, c)
}

func (f *fakeVM) Expose(_ context.Context, reqs ...forward.Request) ([]forward.Forward, error) {
	return f.expose(reqs), f.err
}

func (f *fakeVM) ForwardEvents(context.Context) (iter.Seq[forward.Event], error) {
	return func(yield func(forward.Event) bool) {
		for _, e := range f.events {
			if !yield(e) {
				return
			}
		}
	}, f.err
}

func (f *fakeVM) Files(_ context.Context, op guestapi.Files, in io.Reader, out io.Writer) error {
	return f.files(op, in, out)
}

func (f *fakeVM) Dial(_ context.Context, address string) (net.Conn, error) { return f.dial(address) }

func (f *fakeVM) ChangeEnv(_ context.Context, change machine.EnvChange) error {
	f.env = change
	return f.err
}

// fakeProcess runs a function as a command.
type fakeProcess struct {
	done    chan struct{}
	err     error
	signals chan os.Signal
	sizes   chan [2]int
}

func startFake(f func(p *fakeProcess) error) *fakeProcess {
	p := &fakeProcess{done: make(chan struct{}), signals: make(chan os.Signal, 8), sizes: make(chan [2]int, 8)}
	go func() {
		defer close(p.done)
		p.err = f(p)
	}()
	return p
}

func (p *fakeProcess) Wait() error {
	<-p.done
	return p.err
}

func (p *fakeProcess) Signal(sig os.Signal) error {
	p.signals <- sig
	return nil
}

func (p *fakeProcess) Resize(columns, rows int) error {
	p.sizes <- [2]int{columns, rows}
	return nil
}

// serveFake serves vm and returns a client of it.
func serveFake(t *testing.T, vm target) *client {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	s, err := serve(dir, vm, "test", log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.stop()
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	c := newClient("web", dir, log)
	return c
}

func TestInfo(t *testing.T) {
	want := machine.Info{
		Name: "web", Status: machine.StatusRunning, Owner: machine.OwnerInfo{PID: 7, Version: "1"},
		Forwards: []forward.Forward{{Pair: forward.Pair{HostPort: 8080, GuestPort: 80, Protocol: forward.TCP}, Health: forward.Active}},
	}
	c := serveFake(t, &fakeVM{info: want})
	got, err := c.Info(t.Context())
	if diff := cmp.Diff(want.Forwards, got.Forwards); err != nil || diff != "" || got.Owner != want.Owner || got.Status != want.Status {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestErrorsCross(t *testing.T) {
	cases := map[string]struct {
		err error
		is  []error
	}{
		"not running": {&machine.NotRunningError{Op: "expose port", Status: machine.StatusStopped}, []error{machine.ErrNotRunning}},
		"port":        {fmt.Errorf("it: %w", &forward.PortError{Field: "guest_port", Port: 0}), []error{forward.ErrInvalidPort}},
		"busy":        {&forward.PortInUseError{Port: 80, Holder: "nginx, pid 812"}, []error{forward.ErrPortInUse}},
		"start":       {&machine.StartError{Program: "x", NotFound: true, Err: fmt.Errorf("no x: %w", os.ErrNotExist)}, []error{os.ErrNotExist}},
		"timeout":     {fmt.Errorf("%w: %w", machine.ErrTimeout, context.DeadlineExceeded), []error{machine.ErrTimeout, context.DeadlineExceeded}},
		"several":     {errors.Join(machine.ErrDeleted, syscall.ENOSPC), []error{machine.ErrDeleted, syscall.ENOSPC}},
		"refused": {&guestlink.RefusedError{Op: "copy", Failure: guestapi.Failure{Error: "no such file", Kind: guestapi.KindNotExist}},
			[]error{os.ErrNotExist}},
		"other": {errors.New("no kind at all"), nil},
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			c := serveFake(t, &fakeVM{err: test.err})
			err := c.Stop(t.Context(), machine.StopOptions{})
			if err == nil || err.Error() != test.err.Error() {
				t.Fatalf("got %v, want %v", err, test.err)
			}
			for known, kind := range kinds() {
				want := errors.Is(test.err, kind)
				if got := errors.Is(err, kind); got != want {
					t.Errorf("errors.Is %s: %v, want %v", known, got, want)
				}
			}
			for _, kind := range test.is {
				if !errors.Is(err, kind) {
					t.Errorf("%v is not %v", err, kind)
				}
			}
		})
	}
	c := serveFake(t, &fakeVM{err: cases["busy"].err})
	var busy *forward.PortInUseError
	if err := c.Stop(t.Context(), machine.StopOptions{}); !errors.As(err, &busy) || busy.Holder != "nginx, pid 812" {
		t.Errorf("got %v, want it to name the holder", err)
	}
	var refused *guestlink.RefusedError
	c = serveFake(t, &fakeVM{err: cases["refused"].err})
	if err := c.Stop(t.Context(), machine.StopOptions{}); !errors.As(err, &refused) || refused.Failure.Kind != guestapi.KindNotExist {
		t.Errorf("got %v, want a RefusedError", err)
	}
	var start *machine.StartError
	c = serveFake(t, &fakeVM{err: cases["start"].err})
	if err := c.Stop(t.Context(), machine.StopOptions{}); !errors.As(err, &start) || !start.NotFound || start.Program != "x" {
		t.Errorf("got %v, want a StartError", err)
	}
}

func TestNobodyServes(t *testing.T) {
	dir := t.TempDir()
	c := newClient("web", dir, slog.New(slog.DiscardHandler))
	if _, err := c.Info(t.Context()); !errors.Is(err, errNoOwner) {
		t.Errorf("without a socket: %v", err)
	}
	d, err := sockdir.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l, err := d.Listener(t.Context(), socketName)
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // as when the owner was killed: the socket's name stays
	if _, err := c.Info(t.Context()); !errors.Is(err, errNoOwner) {
		t.Errorf("with a dead socket: %v", err)
	}
	if _, err := c.StartCommand(t.Context(), machine.Command{}); !errors.Is(err, errNoOwner) {
		t.Errorf("command with a dead socket: %v", err)
	}
}

// TestCallerGone: a wait ends when who waits does, but a stop goes on.
func TestCallerGone(t *testing.T) {
	vm := &fakeVM{waits: make(chan struct{}), stops: make(chan struct{}), killed: make(chan struct{}), stopped: make(chan error, 1)}
	c := serveFake(t, vm)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-vm.waits
		cancel()
		<-vm.waits // it was cancelled at the owner's too
	}()
	if _, err := c.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v, want the cancellation", err)
	}

	ctx, cancel = context.WithCancel(t.Context())
	go func() {
		<-vm.stops
		cancel()
	}()
	// It is killed then, which ends the stop.
	if err := c.Stop(ctx, machine.StopOptions{}); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err, ok := <-vm.stopped; !ok || err != nil {
		t.Errorf("the stop was cancelled: %v", err)
	}
}

// TestMainProcess: how a main process ended, and how long it has for that, are told.
func TestMainProcess(t *testing.T) {
	code, grace := 3, time.Minute
	vm := &fakeVM{info: machine.Info{Main: &machine.MainInfo{Command: []string{"false"}, ExitCode: &code}}}
	c := serveFake(t, vm)
	if main, err := c.Wait(t.Context()); err != nil || main == nil || *main.ExitCode != 3 {
		t.Errorf("wait: %+v, %v", main, err)
	}
	if err := c.Stop(t.Context(), machine.StopOptions{Grace: &grace}); err != nil || vm.stop.Grace == nil || *vm.stop.Grace != grace {
		t.Errorf("stop: %+v, %v", vm.stop, err)
	}
	// Clients of before send no body.
	if err := c.post(t.Context(), pathStop, nil); err != nil || vm.stop.Grace != nil {
		t.Errorf("stop without a body: %+v, %v", vm.stop, err)
	}
	vm.info.Main = nil
	if main, err := c.Wait(t.Context()); err != nil || main != nil {
		t.Errorf("wait without one: %+v, %v", main, err)
	}
}

// TestTakenBackTooLate: who cancels learns what was done all the same.
func TestTakenBackTooLate(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := []forward.Forward{{Pair: forward.Pair{HostPort: 8080, GuestPort: 80}}}
	c := serveFake(t, &fakeVM{expose: func([]forward.Request) []forward.Forward {
		cancel()
		return done
	}})
	got, err := c.Expose(ctx, forward.Request{GuestPort: 80})
	if err != nil || !reflect.DeepEqual(got, done) {
		t.Errorf("got %v, %v, want %v", got, err, done)
	}
}

func TestCommand(t *testing.T) {
	c := serveFake(t, &fakeVM{run: func(_ context.Context, c machine.Command) (machine.Process, error) {
		return startFake(func(p *fakeProcess) error {
			fmt.Fprint(c.Stdout, "begun\n") // before anybody is connected, perhaps
			if _, err := io.Copy(c.Stdout, c.Stdin); err != nil {
				return err
			}
			fmt.Fprintf(c.Stderr, "%v %v", <-p.signals, <-p.sizes)
			return machine.NewExitError(guestapi.ExitStatus{Code: 143, Signal: "TERM"})
		}), nil
	}})
	input := bytes.Repeat([]byte("0123456789abcdef"), 300_000) // many windows
	var stdout, stderr bytes.Buffer
	p, err := c.StartCommand(t.Context(), machine.Command{
		Exec: guestapi.Exec{Argv: []string{"cat"}}, Stdin: bytes.NewReader(input), Stdout: &stdout, Stderr: &stderr,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Signal(syscall.SIGTERM), p.Resize(80, 24)); err != nil {
		t.Fatal(err)
	}
	var exit *machine.ExitError
	if err := p.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 143 || exit.Signal() != "TERM" {
		t.Errorf("got %v, want signal TERM", err)
	}
	if !bytes.Equal(stdout.Bytes(), append([]byte("begun\n"), input...)) {
		t.Errorf("output of %d bytes is not the input", stdout.Len())
	}
	if got := stderr.String(); got != "terminated [80 24]" {
		t.Errorf("stderr: %q", got)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("signal after the end: %v", err)
	}
}

// TestHangUp: a command whose client dies is killed, though it takes no input and the client
// had a lot of it.
func TestHangUp(t *testing.T) {
	killed := make(chan struct{})
	c := serveFake(t, &fakeVM{run: func(ctx context.Context, _ machine.Command) (machine.Process, error) {
		return startFake(func(*fakeProcess) error {
			<-ctx.Done()
			close(killed)
			return ctx.Err()
		}), nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	sent := &countingReader{wake: make(chan struct{}, 1)}
	p, err := c.StartCommand(ctx, machine.Command{Stdin: sent})
	if err != nil {
		t.Fatal(err)
	}
	for sent.count() < inputWindow {
		<-sent.wake
	}
	cancel()
	<-killed
	if err := p.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the cancellation", err)
	}
}

// countingReader never ends.
type countingReader struct {
	mu   sync.Mutex
	n    int
	wake chan struct{}
}

func (r *countingReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n += len(p)
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (r *countingReader) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n
}

func TestFiles(t *testing.T) {
	c := serveFake(t, &fakeVM{files: func(op guestapi.Files, in io.Reader, out io.Writer) error {
		switch op.Op {
		case guestapi.FilesWrite:
			got, err := io.ReadAll(in)
			if err == nil && string(got) != "contents" {
				err = fmt.Errorf("got %q", got)
			}
			return err
		case guestapi.FilesRead:
			fmt.Fprint(out, "half")
			return os.ErrPermission
		}
		return fmt.Errorf("refused %s: %w", op.Path, os.ErrNotExist) // without reading
	}})
	ctx := t.Context()
	if err := c.Files(ctx, guestapi.Files{Op: guestapi.FilesWrite}, strings.NewReader("contents"), nil); err != nil {
		t.Error(err)
	}
	broken := io.MultiReader(strings.NewReader("contents"), errReader{})
	if err := c.Files(ctx, guestapi.Files{Op: guestapi.FilesWrite}, broken, nil); !errors.Is(err, errBroken) {
		t.Errorf("broken input: %v", err)
	}
	var out bytes.Buffer
	if err := c.Files(ctx, guestapi.Files{Op: guestapi.FilesRead}, nil, &out); !errors.Is(err, os.ErrPermission) || out.String() != "half" {
		t.Errorf("failed read: %q, %v", out.String(), err)
	}
	endless := &countingReader{wake: make(chan struct{}, 1)}
	if err := c.Files(ctx, guestapi.Files{Op: guestapi.FilesUnpack, Path: "/x"}, endless, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("refused: %v", err)
	}
}

var errBroken = errors.New("broken")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

// TestDial: both directions, and their ends one by one.
func TestDial(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		question, _ := io.ReadAll(conn)
		fmt.Fprintf(conn, "%s!", question)
	}()
	c := serveFake(t, &fakeVM{dial: func(address string) (net.Conn, error) {
		if address != "localhost:22" {
			return nil, fmt.Errorf("nothing at %s", address)
		}
		return net.Dial("tcp", listener.Addr().String())
	}})
	conn, err := c.Dial(t.Context(), "localhost:22")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "hello")
	if err := conn.(halfCloser).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); string(answer) != "hello!" || err != nil {
		t.Errorf("got %q, %v", answer, err)
	}
	if _, err := c.Dial(t.Context(), "localhost:23"); err == nil || err.Error() != "nothing at localhost:23" {
		t.Errorf("refused: %v", err)
	}
}

func TestForwardEvents(t *testing.T) {
	want := []forward.Event{
		{Kind: forward.Exposed, Forward: forward.Forward{Pair: forward.Pair{HostPort: 1, GuestPort: 2, Protocol: forward.UDP}}},
		{Kind: forward.Unexposed, Forward: forward.Forward{Pair: forward.Pair{HostPort: 1, GuestPort: 2, Protocol: forward.UDP}}},
	}
	c := serveFake(t, &fakeVM{events: want})
	events, err := c.ForwardEvents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []forward.Event
	for e := range events {
		got = append(got, e)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestMoved: who asks for a port and gets another one reads that in its own log.
func TestMoved(t *testing.T) {
	var log bytes.Buffer
	c := serveFake(t, &fakeVM{expose: func(reqs []forward.Request) []forward.Forward {
		return []forward.Forward{{Pair: forward.Pair{HostPort: reqs[0].HostPort + 1, GuestPort: reqs[0].GuestPort, Protocol: forward.TCP}}}
	}})
	c.log = slog.New(slog.NewTextHandler(&log, nil))
	forwards, err := c.Expose(t.Context(), forward.Request{GuestPort: 80, HostPort: 8080, HostPortSet: true})
	if err != nil || forwards[0].HostPort != 8081 || !strings.Contains(log.String(), "wanted=8080 host_port=8081") {
		t.Errorf("got %v, %v, log %s", forwards, err, &log)
	}
}
