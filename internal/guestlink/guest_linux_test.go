package guestlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guest"
	"github.com/smolvm/smolvm/internal/guestapi"
)

// reaper starts the commands of all guests in this process: there can be only one.
var reaper *guest.Reaper

func TestMain(m *testing.M) {
	guest.HelperMain()
	reaper = guest.NewReaper()
	// What a test leaves in the background becomes a child of this process, as it
	// becomes one of PID 1.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	code := m.Run()
	if err := awaitNoChildren(10 * time.Second); err != nil && code == 0 {
		os.Stderr.WriteString(err.Error() + "\n")
		code = 1
	}
	reaper.Close()
	if code == 0 {
		if err := goleak.Find(goleak.IgnoreTopFunction("os/signal.loop"), goleak.IgnoreTopFunction("os/signal.signal_recv")); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			code = 1
		}
	}
	os.Exit(code)
}

// awaitNoChildren waits until the tests' processes are gone. The reaper collects them.
func awaitNoChildren(limit time.Duration) error {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	deadline := time.After(limit)
	for {
		var left []string
		tasks, err := filepath.Glob("/proc/self/task/*/children")
		if err != nil || len(tasks) == 0 {
			return fmt.Errorf("list children: %v", err)
		}
		for _, task := range tasks {
			pids, _ := os.ReadFile(task) // a thread may have gone
			left = append(left, strings.Fields(string(pids))...)
		}
		if len(left) == 0 {
			return nil
		}
		select {
		case <-ended:
		case <-time.After(50 * time.Millisecond): // the reaper may be a little later than the signal
		case <-deadline:
			return fmt.Errorf("processes %v are left behind", left)
		}
	}
}

// fakeSystem is a guest with nothing to configure. It notes what it is told.
type fakeSystem struct {
	identities chan guestapi.Identity
	off        chan struct{}
	rested     chan struct{}
	synced     atomic.Int32
	fail       error
	ready      chan struct{} // nil: it is
	console    *watched

	clock sync.Mutex
	late  time.Duration // its clock is, compared with the host's
	steps int
}

func newFakeSystem() *fakeSystem {
	return &fakeSystem{identities: make(chan guestapi.Identity, 8), off: make(chan struct{}, 8), rested: make(chan struct{}, 8), console: newWatched()}
}

func (s *fakeSystem) Ready(ctx context.Context) error {
	if s.ready == nil {
		return nil
	}
	select {
	case <-s.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *fakeSystem) Configure(_ context.Context, id guestapi.Identity) error {
	s.identities <- id
	return s.fail
}

func (s *fakeSystem) Rehearse(ctx context.Context, id guestapi.Identity) error {
	return s.Configure(ctx, id)
}

func (s *fakeSystem) StepClock(step time.Duration) (time.Time, error) {
	s.clock.Lock()
	defer s.clock.Unlock()
	s.late -= step
	s.steps++
	return time.Now().Add(-s.late), s.fail
}

func (s *fakeSystem) Rest() { s.rested <- struct{}{} }

func (s *fakeSystem) Sync() { s.synced.Add(1) }

func (s *fakeSystem) PowerOff() { s.off <- struct{}{} }

func (s *fakeSystem) Console() io.Writer { return s.console }

// port behaves as a virtio-serial port does: hosts come and go, and while there is
// none it reads as ended and a write waits.
type port struct {
	mu     sync.Mutex
	change *sync.Cond
	host   net.Conn // the guest's end of the connection to it
	closed bool
	reads  int // how often it was found without a host
}

func newPort() *port {
	p := &port{}
	p.change = sync.NewCond(&p.mu)
	return p
}

// connect returns the host's end of a new connection.
func (p *port) connect(t testing.TB) net.Conn {
	t.Helper()
	host, end := socketPair(t)
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.host != nil && !p.closed {
		p.change.Wait() // one at a time is served
	}
	p.host = end
	p.change.Broadcast()
	return host
}

func (p *port) Read(b []byte) (int, error) {
	p.mu.Lock()
	host := p.host
	if host == nil {
		p.reads++
	}
	p.mu.Unlock()
	if host == nil {
		return 0, io.EOF
	}
	n, err := host.Read(b)
	if err != nil {
		p.drop(host)
		return n, io.EOF
	}
	return n, nil
}

// drop notes that a host has gone.
func (p *port) drop(host net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	host.Close()
	if p.host == host {
		p.host = nil
		p.change.Broadcast()
	}
}

func (p *port) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		p.mu.Lock()
		for p.host == nil && !p.closed {
			p.change.Wait()
		}
		host, closed := p.host, p.closed
		p.mu.Unlock()
		if closed {
			return 0, os.ErrClosed
		}
		n, err := host.Write(rest)
		rest = rest[n:]
		if err != nil {
			p.drop(host)
		}
	}
	return len(b), nil
}

// hangUp cuts the connection to the host there is.
func (p *port) hangUp() {
	p.mu.Lock()
	host := p.host
	p.mu.Unlock()
	if host != nil {
		p.drop(host)
	}
}

func (p *port) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.host != nil {
		p.host.Close()
	}
	p.change.Broadcast()
}

func socketPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

// startGuest serves a guest on a port until the test ends.
func startGuest(t testing.TB, system guest.System) *port {
	t.Helper()
	p := newPort()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	server := guest.NewServer(system, reaper, log)
	ended := make(chan error, 1)
	go func() { ended <- server.ServeChannel(p, func([]byte) {}) }()
	t.Cleanup(func() {
		p.close()
		if err := <-ended; !errors.Is(err, os.ErrClosed) {
			t.Errorf("the guest ended: %v", err)
		}
	})
	return p
}

// dial makes a link to the guest at p, closed when the test ends.
func dial(t testing.TB, p *port) *Link {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	l, err := Dial(ctx, p.connect(t), slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func newLink(t testing.TB) *Link {
	t.Helper()
	return dial(t, startGuest(t, newFakeSystem()))
}
