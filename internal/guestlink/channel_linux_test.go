package guestlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// openChannel makes a channel to the guest at p, closed when the test ends.
func openChannel(t *testing.T, p *port, cfg ChannelConfig) *Channel {
	t.Helper()
	c, err := Open(t.Context(), filled(t, p, cfg))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// filled is cfg with what tests need that do not care.
func filled(t *testing.T, p *port, cfg ChannelConfig) ChannelConfig {
	if cfg.Dial == nil {
		cfg.Dial = func(context.Context) (net.Conn, error) { return p.connect(t), nil }
	}
	if cfg.Prepare == nil {
		cfg.Prepare = func(ctx context.Context, l *Link) error { return l.Configure(ctx, guestapi.Identity{}) }
	}
	cfg.Log = discard()
	return cfg
}

func awaitState(t *testing.T, states <-chan State, up bool) State {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case s, ok := <-states:
			if !ok {
				t.Fatal("no more states")
			}
			if s.Up == up {
				return s
			}
		case <-timeout:
			t.Fatalf("the channel does not get to up=%v", up)
		}
	}
}

// After a cut all goes on without the caller doing anything; what was carried over the
// old link is lost, and is said to be.
func TestChannelRedials(t *testing.T) {
	p := startGuest(t, newFakeSystem())
	var prepared atomic.Int32
	c := openChannel(t, p, ChannelConfig{Prepare: func(ctx context.Context, l *Link) error {
		prepared.Add(1)
		return l.Configure(ctx, guestapi.Identity{Env: []string{fmt.Sprintf("LINK=%d", prepared.Load())}})
	}})
	states := c.States(t.Context())
	awaitState(t, states, true)
	reports := c.Listeners(t.Context())
	address := serveTCP(t, "tcp", "127.0.0.1:0", func(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) })
	for round := range 3 {
		conn, err := c.DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		// In the middle of a transfer.
		moved := make(chan struct{})
		writing := make(chan error, 1)
		go func() {
			_, err := io.Copy(conn, struct{ io.Reader }{endless{}})
			writing <- err
		}()
		reading := make(chan error, 1)
		go func() {
			_, err := io.ReadFull(conn, make([]byte, 1<<20))
			close(moved)
			if err == nil {
				_, err = io.Copy(io.Discard, conn)
			}
			reading <- err
		}()
		process, err := c.Start(t.Context(), sh("echo $LINK; sleep 60"), nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		<-moved
		p.hangUp()
		if _, err := process.Wait(); !errors.Is(err, ErrLost) {
			t.Errorf("round %d: command: %v", round, err)
		}
		if err := <-writing; !errors.Is(err, ErrLost) {
			t.Errorf("round %d: writing: %v", round, err)
		}
		if err := <-reading; !errors.Is(err, ErrLost) {
			t.Errorf("round %d: reading: %v", round, err)
		}
		conn.Close()

		next, err := c.DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := next.Write([]byte("again")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(next, got); err != nil || string(got) != "again" {
			t.Errorf("round %d: %q, %v", round, got, err)
		}
		next.Close()
		if want := int32(round + 2); prepared.Load() != want {
			t.Errorf("round %d: prepared %d links, not %d", round, prepared.Load(), want)
		}
		awaitState(t, states, true)
	}
	// Reports go on over the new link.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	for report := range reports {
		if report.TCP[port] == guestapi.ScopeLoopback {
			break
		}
	}
	c.Close()
	for range states {
	}
	for range reports {
	}
	if _, err := c.Link(t.Context()); !errors.Is(err, ErrLost) || !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// While there is no guest to be had, callers wait as long as they like.
func TestChannelDown(t *testing.T) {
	p := startGuest(t, newFakeSystem())
	var away atomic.Bool
	refused := errors.New("nobody there")
	attempts := make(chan struct{}, 1000)
	c := openChannel(t, p, ChannelConfig{Dial: func(context.Context) (net.Conn, error) {
		if away.Load() {
			attempts <- struct{}{}
			return nil, refused
		}
		return p.connect(t), nil
	}})
	states := c.States(t.Context())
	away.Store(true)
	p.hangUp()
	if s := awaitState(t, states, false); !errors.Is(s.Err, ErrLost) {
		t.Errorf("down because of %v", s.Err)
	}
	<-attempts
	<-attempts // again and again
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Start(ctx, sh("true"), nil, nil, nil); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrLost) {
		t.Errorf("got %v", err)
	}
	started := make(chan error, 1)
	go func() {
		_, err := c.Start(t.Context(), sh("true"), nil, nil, nil)
		started <- err
	}()
	away.Store(false)
	if err := <-started; err != nil {
		t.Error(err)
	}
	awaitState(t, states, true)
}

// It ends with the machine, even while it waits for the guest, and no attempt holds it up.
func TestChannelEnds(t *testing.T) {
	for name, cut := range map[string]bool{"up": false, "down": true} {
		t.Run(name, func(t *testing.T) {
			p := startGuest(t, newFakeSystem())
			ended := make(chan struct{})
			silent := make(chan net.Conn, 1)
			var first atomic.Bool
			c := openChannel(t, p, ChannelConfig{Ended: ended, Dial: func(context.Context) (net.Conn, error) {
				if first.CompareAndSwap(false, true) {
					return p.connect(t), nil
				}
				host, end := socketPair(t)
				silent <- end
				return host, nil
			}})
			states := c.States(t.Context())
			if cut {
				p.hangUp()
				defer (<-silent).Close() // and never a word from it
			}
			waiting := make(chan error, 1)
			go func() {
				for {
					if _, err := c.Link(t.Context()); err != nil {
						waiting <- err
						return
					}
				}
			}()
			close(ended)
			if err := <-waiting; !errors.Is(err, ErrLost) || !errors.Is(err, errMachineEnded) {
				t.Errorf("got %v", err)
			}
			for range states {
			}
			c.Close()
		})
	}
}

// A new owner's channel does not wait for a guest that is silent, as one that is paused,
// and is there once the guest answers.
func TestReopen(t *testing.T) {
	p := startGuest(t, newFakeSystem())
	awake := make(chan struct{})
	c := Reopen(filled(t, p, ChannelConfig{Dial: func(ctx context.Context) (net.Conn, error) {
		select {
		case <-awake:
			return p.connect(t), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}))
	defer c.Close()
	states := c.States(t.Context())
	if s := awaitState(t, states, false); !errors.Is(s.Err, ErrLost) || !strings.Contains(s.Err.Error(), "not connected yet") {
		t.Errorf("begins with %v", s.Err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Start(ended, sh("true"), nil, nil, nil); !errors.Is(err, ErrLost) || !errors.Is(err, context.Canceled) {
		t.Errorf("before: %v", err)
	}
	close(awake)
	awaitState(t, states, true)
	process, err := c.Start(t.Context(), sh("exit 3"), nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if status, err := process.Wait(); err != nil || status.Code != 3 {
		t.Errorf("got %+v, %v", status, err)
	}
	p.hangUp() // from here on it is a channel as any other
	if _, err := c.Link(t.Context()); err != nil {
		t.Error(err)
	}
}

// One that never connects ends all the same.
func TestReopenEnds(t *testing.T) {
	silent := func(ctx context.Context) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ended := make(chan struct{})
	c := Reopen(filled(t, nil, ChannelConfig{Dial: silent, Ended: ended}))
	close(ended)
	if _, err := c.Link(t.Context()); !errors.Is(err, ErrLost) || !errors.Is(err, errMachineEnded) {
		t.Errorf("got %v", err)
	}
	c.Close()
	c = Reopen(filled(t, nil, ChannelConfig{Dial: silent}))
	c.Close()
	if _, err := c.Link(t.Context()); !errors.Is(err, ErrLost) || !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestOpenFails(t *testing.T) {
	refused := errors.New("nobody there")
	fails := func(context.Context) (net.Conn, error) { return nil, refused }
	if _, err := Open(t.Context(), ChannelConfig{Dial: fails, Log: discard()}); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	p := startGuest(t, newFakeSystem())
	_, err := Open(t.Context(), ChannelConfig{
		Dial:    func(context.Context) (net.Conn, error) { return p.connect(t), nil },
		Prepare: func(context.Context, *Link) error { return refused }, Log: discard(),
	})
	if !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	host, end := socketPair(t)
	defer end.Close()
	ended := make(chan struct{})
	close(ended)
	_, err = Open(t.Context(), ChannelConfig{Dial: func(context.Context) (net.Conn, error) { return host, nil }, Ended: ended, Log: discard()})
	if !errors.Is(err, errMachineEnded) {
		t.Errorf("got %v", err)
	}
}

// A guest that falls silent is noticed, and met anew.
func TestChannelKeepAlive(t *testing.T) {
	p := startGuest(t, newFakeSystem())
	var hangs atomic.Bool
	c := openChannel(t, p, ChannelConfig{Dial: func(context.Context) (net.Conn, error) {
		conn := p.connect(t)
		if hangs.Load() {
			return conn, nil
		}
		return &deafConn{Conn: conn, deaf: &hangs}, nil
	}})
	states := c.States(t.Context())
	c.KeepAlive(10*time.Millisecond, 100*time.Millisecond)
	if _, err := c.Link(t.Context()); err != nil {
		t.Fatal(err)
	}
	hangs.Store(true)
	awaitState(t, states, false)
	awaitState(t, states, true)
}

// deafConn hears nothing any more once it is deaf.
type deafConn struct {
	net.Conn
	deaf *atomic.Bool
}

func (c *deafConn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if err != nil || !c.deaf.Load() {
			return n, err
		}
	}
}
