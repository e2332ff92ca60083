package guestlink

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestapi/wire"
)

func TestConfigure(t *testing.T) {
	system := newFakeSystem()
	l := dial(t, startGuest(t, system))
	id := guestapi.Identity{Hostname: "one", Env: []string{"COLOR=red"}, Entropy: []byte("e")}
	for range 2 {
		if err := l.Configure(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if got := <-system.identities; got.Hostname != "one" || string(got.Entropy) != "e" {
			t.Errorf("got %+v", got)
		}
	}
	if r := run(t, l, sh("echo $COLOR"), nil); r.stdout.String() != "red\n" {
		t.Errorf("environment: %q", &r.stdout)
	}
	if r := run(t, l, guestapi.Exec{Argv: []string{"/bin/sh", "-c", "echo $COLOR"}, Env: []string{"COLOR=blue"}}, nil); r.stdout.String() != "blue\n" {
		t.Errorf("command's own environment: %q", &r.stdout)
	}
	if err := l.Configure(t.Context(), guestapi.Identity{HostKey: []byte("no key")}); err == nil || !strings.Contains(err.Error(), "host key") {
		t.Errorf("a bad host key: %v", err)
	}
	if err := l.Configure(t.Context(), guestapi.Identity{AuthorizedKeys: []byte("command=\"x\" ssh-ed25519 AAAA")}); err == nil {
		t.Error("a restricted key was taken")
	}
	system.fail = fs.ErrPermission
	var refused *RefusedError
	if err := l.Configure(t.Context(), id); !errors.As(err, &refused) || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a failed configuration: %v", err)
	}
	if err := l.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-system.off
}

// A guest rests when it has booted, and forgets what it rehearsed with.
func TestRest(t *testing.T) {
	system := newFakeSystem()
	system.ready = make(chan struct{})
	l := dial(t, startGuest(t, system))
	done := make(chan error, 1)
	go func() {
		done <- l.Rest(t.Context(), guestapi.Identity{Hostname: "rehearsal", Env: []string{"COLOR=red"}})
	}()
	if err := l.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-system.rested:
		t.Error("it rests before it has booted")
	default:
	}
	close(system.ready)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := <-system.identities; got.Hostname != "rehearsal" {
		t.Errorf("rehearsed with %+v", got)
	}
	<-system.rested
	if r := run(t, l, sh("echo $COLOR"), nil); r.stdout.String() != "\n" {
		t.Errorf("the rehearsal's environment is kept: %q", &r.stdout)
	}
}

// A clock that is wrong is set as exactly as it can be read, and one that is right is left alone.
func TestSyncClock(t *testing.T) {
	system := newFakeSystem()
	l := dial(t, startGuest(t, system))
	const tolerance = 10 * clockPrecision // of a busy host
	for _, late := range []time.Duration{time.Hour, -time.Hour, 365 * 24 * time.Hour, 200 * time.Millisecond} {
		system.late = late
		if err := l.SyncClock(t.Context()); err != nil {
			t.Fatal(err)
		}
		system.clock.Lock()
		if system.late.Abs() > tolerance {
			t.Errorf("a clock that was %v late is so by %v, after %d steps", late, system.late, system.steps)
		}
		system.clock.Unlock()
	}
	system.late = 0
	if err := l.SyncClock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if system.late.Abs() > tolerance {
		t.Errorf("a clock that was right is late by %v", system.late)
	}
	system.fail = fs.ErrPermission
	if err := l.SyncClock(t.Context()); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a guest that cannot set its clock: %v", err)
	}
}

func TestSync(t *testing.T) {
	system := newFakeSystem()
	l := dial(t, startGuest(t, system))
	if err := l.Sync(t.Context()); err != nil || system.synced.Load() != 1 {
		t.Errorf("the disk was written out %d times, %v", system.synced.Load(), err)
	}
}

// A command waits for the guest's boot, and no longer than its context.
func TestExecBeforeBoot(t *testing.T) {
	system := newFakeSystem()
	system.ready = make(chan struct{})
	l := dial(t, startGuest(t, system))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := l.Start(ctx, sh("true"), nil, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if err := l.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(system.ready)
	if r := run(t, l, sh("exit 4"), nil); r.status.Code != 4 {
		t.Errorf("got %+v", r.status)
	}
}

// What an earlier host left behind does not disturb the next one.
func TestResyncAfterAnything(t *testing.T) {
	hello := guestapi.Frame{Kind: guestapi.FrameHello, Nonce: [16]byte{1}}.Append(nil)
	for name, leave := range map[string]func(t *testing.T, p *port){
		"nothing": func(*testing.T, *port) {},
		"junk":    func(t *testing.T, p *port) { write(t, p, []byte("SSH-2.0-junk\r\n\x00\x01\x02")) },
		"half a hello": func(t *testing.T, p *port) {
			write(t, p, hello[:len(hello)/2])
		},
		"a hello and no more": func(t *testing.T, p *port) { write(t, p, hello) },
		"a go for nobody": func(t *testing.T, p *port) {
			write(t, p, guestapi.Frame{Kind: guestapi.FrameGo, Nonce: [16]byte{9}}.Append(nil))
		},
		"a session, hung up": func(t *testing.T, p *port) {
			l := dial(t, p)
			if _, err := l.Start(t.Context(), sh("while :; do echo line; done"), nil, nil, nil); err != nil {
				t.Fatal(err)
			}
			l.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := startGuest(t, newFakeSystem())
			leave(t, p)
			for range 3 {
				l := dial(t, p)
				if r := run(t, l, sh("echo alive"), nil); r.stdout.String() != "alive\n" {
					t.Errorf("got %q", &r.stdout)
				}
				l.Close()
			}
		})
	}
}

// write is a host that writes and goes.
func write(t *testing.T, p *port, data []byte) {
	t.Helper()
	conn := p.connect(t)
	defer conn.Close()
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
}

// A host that takes over without the stream being cut, in the middle of a packet.
func TestHelloDuringSession(t *testing.T) {
	p := startGuest(t, newFakeSystem())
	host := p.connect(t)
	defer host.Close()
	// The old session's host is stuck behind a relay that hands its bytes on until
	// it is told to stop, wherever that is.
	old, relay := socketPair(t)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_, _ = io.Copy(host, struct{ io.Reader }{relay})
	}()
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(relay, struct{ io.Reader }{host})
	}()
	l, err := Dial(t.Context(), old, discard())
	if err != nil {
		t.Fatal(err)
	}
	out := newWatched()
	process, err := l.Start(t.Context(), sh("echo $$; exec cat >/dev/null"), endless{}, out, nil)
	if err != nil {
		t.Fatal(err)
	}
	pid := out.await(t, "\n")
	if err := relay.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	<-stopped
	if err := host.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	<-back
	if err := host.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Write([]byte("half of a pack")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	next, err := Dial(ctx, host, discard())
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if r := run(t, next, sh("echo alive"), nil); r.stdout.String() != "alive\n" {
		t.Errorf("got %q", &r.stdout)
	}
	awaitGone(t, pid) // the old session's command
	relay.Close()
	l.Close()
	if _, err := process.Wait(); !errors.Is(err, ErrLost) {
		t.Errorf("old command: %v", err)
	}
}

// What goes through a session may hold all that begins one.
func TestForgedFrames(t *testing.T) {
	forged := bytes.Repeat(guestapi.Frame{Kind: guestapi.FrameHello, Nonce: [16]byte{1}}.Append([]byte("x")), 1000)
	r := run(t, newLink(t), sh("cat"), bytes.NewReader(forged))
	if r.status.Code != 0 || !bytes.Equal(r.stdout.Bytes(), forged) {
		t.Errorf("%d bytes of %d came back, %+v", r.stdout.Len(), len(forged), r.status)
	}
}

func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// A port without a host is not asked again and again.
func TestGuestDoesNotSpinWithoutHost(t *testing.T) {
	p := startGuest(t, newFakeSystem())
	for range 5 {
		dial(t, p).Close()
	}
	dial(t, p)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reads > 10 {
		t.Errorf("the port was read %d times without a host", p.reads)
	}
}

func TestDialEndsWithContext(t *testing.T) {
	for name, guest := range map[string]func(net.Conn){
		"silent guest": func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) },
		"guest that reads nothing": func(conn net.Conn) {
			_, _ = io.ReadFull(conn, make([]byte, 1))
		},
		"guest that talks without end": func(conn net.Conn) {
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			_, _ = io.Copy(conn, endless{})
		},
		"guest that answers and falls silent": func(conn net.Conn) {
			var s guestapi.Scanner
			buf := make([]byte, 4096)
			for {
				n, err := conn.Read(buf)
				if err != nil {
					return
				}
				_, f, ok := s.Scan(buf[:n])
				if ok && f.Kind == guestapi.FrameHello {
					_, _ = conn.Write(guestapi.NewEcho(f.Nonce).Append(nil))
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			host, end := socketPair(t)
			served := make(chan struct{})
			go func() {
				defer close(served)
				guest(end)
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			begin := time.Now()
			if _, err := Dial(ctx, host, discard()); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
			end.Close()
			<-served
		})
	}
}

func TestLinkLost(t *testing.T) {
	p := startGuest(t, newFakeSystem())
	l := dial(t, p)
	sub := l.Listeners(t.Context())
	process, err := l.Start(t.Context(), sh("sleep 60"), nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.close() // as if the machine had gone
	<-l.Done()
	if !errors.Is(l.Err(), ErrLost) {
		t.Errorf("Err: %v", l.Err())
	}
	if _, err := process.Wait(); !errors.Is(err, ErrLost) {
		t.Errorf("Wait: %v", err)
	}
	for range sub {
	}
	if _, err := l.Start(t.Context(), sh("true"), nil, nil, nil); !errors.Is(err, ErrLost) {
		t.Errorf("Start: %v", err)
	}
	if _, err := l.DialContext(t.Context(), "tcp", "127.0.0.1:1"); !errors.Is(err, ErrLost) {
		t.Errorf("DialContext: %v", err)
	}
	for name, err := range map[string]error{
		"Ping": l.Ping(t.Context()), "PowerOff": l.PowerOff(t.Context()), "Configure": l.Configure(t.Context(), guestapi.Identity{}),
	} {
		if !errors.Is(err, ErrLost) {
			t.Errorf("%s: %v", name, err)
		}
	}
	l.KeepAlive(time.Second, time.Second)
	if _, ok := <-l.Listeners(t.Context()); ok {
		t.Error("Listeners: still reports")
	}
}

// A guest that stops to answer is noticed, unless nobody looks.
func TestKeepAlive(t *testing.T) {
	conn, end := socketPair(t)
	pipe, guest := socketPair(t)
	stop := make(chan struct{})
	go func() { _, _ = io.Copy(pipe, struct{ io.Reader }{end}) }()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := pipe.Read(buf)
			if err != nil {
				return
			}
			select {
			case <-stop:
				continue // the guest hangs
			default:
			}
			if _, err := end.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	go func() {
		session := wire.NewGuest(wire.NewConn(answerHello(guest)))
		for open := range session.Opens() {
			_ = open.Reject(ssh.UnknownChannelType, "")
		}
	}()
	l, err := Dial(t.Context(), conn, discard())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, c := range []net.Conn{end, pipe, guest} {
			c.Close()
		}
	}()
	if err := l.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.KeepAlive(0, 0)
	close(stop)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := l.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the guest still answers: %v", err)
	}
	select {
	case <-l.Done():
		t.Fatal("the link ended although nobody looks")
	default:
	}
	l.KeepAlive(10*time.Millisecond, 50*time.Millisecond)
	select {
	case <-l.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("nobody noticed that the guest is dead")
	}
	if !errors.Is(l.Err(), ErrLost) || !strings.Contains(l.Err().Error(), "no answer") {
		t.Errorf("got %v", l.Err())
	}
}

// A guest that booted with another version is not misunderstood: it is said what to do.
func TestDialOtherVersion(t *testing.T) {
	host, end := socketPair(t)
	go func() {
		var s guestapi.Scanner
		buf := make([]byte, 4096)
		for {
			n, err := end.Read(buf)
			if err != nil {
				return
			}
			if _, f, ok := s.Scan(buf[:n]); ok && f.Kind == guestapi.FrameHello {
				// As all did before there were versions.
				_, _ = end.Write(guestapi.Frame{Kind: guestapi.FrameEcho, Nonce: f.Nonce}.Append(nil))
			}
		}
	}()
	defer end.Close()
	if _, err := Dial(t.Context(), host, discard()); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "start it again") {
		t.Errorf("got %v", err)
	}
}

// answerHello plays the guest's part of the resynchronisation.
func answerHello(conn net.Conn) net.Conn {
	in := &frameReader{conn: conn}
	for {
		n, f, ok := in.scanner.Scan(in.unread)
		in.unread = in.unread[n:]
		switch {
		case ok && f.Kind == guestapi.FrameHello:
			_, _ = conn.Write(guestapi.NewEcho(f.Nonce).Append(nil))
		case ok && f.Kind == guestapi.FrameGo:
			f.Kind = guestapi.FrameReady
			_, _ = conn.Write(f.Append(nil))
			return &guestConn{&resyncedConn{Conn: conn, early: in.unread, mask: guestapi.NewMask(f.Nonce)}}
		case len(in.unread) == 0:
			n, err := conn.Read(in.buf[:])
			if err != nil {
				return conn
			}
			in.unread = in.buf[:n]
		}
	}
}

// guestConn is the guest's end of a resyncedConn, which unmasks.
type guestConn struct{ *resyncedConn }

func (c *guestConn) Read(p []byte) (int, error) {
	n, err := c.resyncedConn.Read(p)
	c.mask.Apply(p, p[:n])
	return n, err
}

func (c *guestConn) Write(p []byte) (int, error) { return c.Conn.Write(p) }

func TestListeners(t *testing.T) {
	l := newLink(t)
	ctx, cancel := context.WithCancel(t.Context())
	sub := l.Listeners(ctx)
	await := func(sub <-chan guestapi.Listeners, port uint16, want guestapi.Scope) {
		t.Helper()
		timeout := time.After(10 * time.Second)
		for {
			select {
			case now, ok := <-sub:
				if !ok {
					t.Fatal("the reports ended")
				}
				if now.TCP[port] == want {
					return
				}
			case <-timeout:
				t.Fatalf("no report of port %d as %q", port, want)
			}
		}
	}
	for address, scope := range map[string]guestapi.Scope{
		"127.0.0.1:0": guestapi.ScopeLoopback, "[::1]:0": guestapi.ScopeLoopback,
		"0.0.0.0:0": guestapi.ScopeNetwork, "[::]:0": guestapi.ScopeNetwork,
	} {
		server, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		port := uint16(server.Addr().(*net.TCPAddr).Port)
		await(sub, port, scope)
		// A later subscriber is told at once.
		await(l.Listeners(ctx), port, scope)
		server.Close()
		await(sub, port, "")
	}
	cancel()
	for range sub {
	}
}

// Nothing that the guest sends by itself harms the host.
func TestHostileGuest(t *testing.T) {
	host, end := socketPair(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server := wire.NewGuest(wire.NewConn(answerHello(end)))
		go func() {
			for req := range server.Requests() {
				_ = req.Reply(false, []byte("no failure"))
			}
		}()
		report := guestapi.Encode(&guestapi.Listeners{TCP: map[uint16]guestapi.Scope{80: guestapi.ScopeNetwork}})
		for _, payload := range [][]byte{nil, []byte("x"), report[1:], report} {
			_, _, _ = server.SendRequest(guestapi.RequestListeners, false, payload)
		}
		for open := range server.Opens() {
			channel, reqs, err := open.Accept() // a process that says nonsense
			if err != nil {
				continue
			}
			go ssh.DiscardRequests(reqs)
			_, _ = channel.SendRequest("exit-status", false, []byte("x"))
			_, _ = channel.SendRequest("exit-signal", false, ssh.Marshal(guestapi.ExitSignal{Signal: "../../\x00"}))
			_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{5}))
			channel.Close()
		}
	}()
	l, err := Dial(t.Context(), host, discard())
	if err != nil {
		t.Fatal(err)
	}
	var r *RefusedError
	if err := l.Configure(t.Context(), guestapi.Identity{}); !errors.As(err, &r) {
		t.Errorf("got %v", err)
	}
	p, err := l.Start(t.Context(), sh("true"), nil, os.Stderr, nil)
	if err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); err != nil || status.Code != 128 {
		t.Errorf("got %+v, %v", status, err)
	}
	l.Close()
	<-ended
	end.Close()
}

func FuzzRefused(f *testing.F) {
	f.Add(guestapi.Encode(&guestapi.Failure{Error: "x", Kind: guestapi.KindNotExist}))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		err := refused("op", payload)
		if err == nil || err.Error() == "" {
			t.Fatal("no error")
		}
		var want guestapi.Failure
		if guestapi.Decode(payload, &want) == nil && want.Kind == guestapi.KindNotExist && want.Error != "" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v is not fs.ErrNotExist", err)
		}
	})
}
