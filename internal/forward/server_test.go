package forward_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
)

// pair exposes some port of the guest and returns both ends of a connection to it.
func pair(t *testing.T, m *machine, host string, transport forward.Transport) (client, server *net.TCPConn, f forward.Forward) {
	t.Helper()
	l := m.Listen("0.0.0.0:0")
	f = m.expose(forward.Request{GuestPort: l.Addr().(*net.TCPAddr).Port, Transport: transport})
	c, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(f.HostPort)), patience)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	l.SetDeadline(time.Now().Add(patience))
	s, err := l.AcceptTCP()
	must(t, err)
	t.Cleanup(func() { s.Close() })
	for _, c := range []net.Conn{c, s} {
		c.SetDeadline(time.Now().Add(patience))
	}
	return c.(*net.TCPConn), s, f
}
func TestUnexposeEndsConnections(t *testing.T) {
	m := newMachine(t)
	for _, way := range ways() {
		t.Run(way.name, func(t *testing.T) {
			client, server, f := pair(t, m, way.host, way.transport)
			// One connection whose server ended it first: its rest lingers in the kernel.
			other := m.expose(forward.Request{GuestPort: 22, Transport: way.transport})
			wantAnswer(t, way.host, other.HostPort, "SSH-2.0-test")
			m.unexpose(other)
			m.unexpose(f)
			// Who only waits learns it, too. The kernel ends its own connections as aborted.
			if _, err := io.ReadAll(client); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.ECONNABORTED) {
				t.Errorf("client saw %v", err)
			}
			server.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if n, err := server.Read(make([]byte, 8)); n != 0 || err == nil {
				t.Errorf("the guest got %d bytes, %v", n, err)
			}
			for _, old := range []forward.Forward{f, other} {
				again := m.expose(forward.Request{GuestPort: old.GuestPort, HostPort: old.HostPort, Strict: true, Transport: way.transport})
				if again.HostPort != old.HostPort {
					t.Errorf("got port %d, not %d again", again.HostPort, old.HostPort)
				}
				m.unexpose(again)
			}
		})
	}
}
func TestOutOfFileDescriptors(t *testing.T) {
	m := newMachine(t)
	m.serve("0.0.0.0:90", "page")
	f := m.expose(forward.Request{GuestPort: 90, Transport: forward.SSHTunnel})
	wantAnswer(t, "127.0.0.1", f.HostPort, "page")
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: limit.Max})) // no new one fits
	restore := func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: f.HostPort, Addr: [4]byte{127, 0, 0, 1}})
	if err != nil {
		restore()
		t.Fatal(err)
	}
	func() {
		defer restore()
		wait(t, "a warning", func() bool { return m.log.Count("could not accept") > 0 })
	}()
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	buf := make([]byte, 4)
	if n, err := unix.Read(fd, buf); err != nil || n != 4 || string(buf) != "page" {
		t.Errorf("once there are descriptors again: %q, %v; log: %s", buf, err, m.log)
	}
	if n := m.log.Count("could not accept"); n > 20 {
		t.Errorf("it did not wait between attempts: %d warnings", n)
	}
}

func TestCloseInterruptsDial(t *testing.T) {
	dialing := make(chan struct{})
	m := newMachine(t, func(c *forward.Config) {
		c.Tunnel = endless{dialing}
	})
	f := m.expose(forward.Request{GuestPort: 90, Transport: forward.SSHTunnel})
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(f.HostPort)))
	must(t, err)
	defer c.Close()
	<-dialing
	m.unexpose(f)
	if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the client saw %v", err)
	}
}

// endless is a way into a guest that never answers.
type endless struct{ dialing chan struct{} }

func (e endless) DialStream(ctx context.Context, _ uint16) (forward.Conn, error) {
	close(e.dialing)
	<-ctx.Done()
	return nil, ctx.Err()
}

func (e endless) DialDatagrams(context.Context, uint16) (net.Conn, error) { panic("nobody sends") }

// What goes through is counted while it does.
func TestTrafficIsCounted(t *testing.T) {
	s := newSite(t)
	for _, way := range ways()[1:] {
		t.Run(way.name, func(t *testing.T) { testCounted(t, path{s, way}) })
	}
}

func testCounted(t *testing.T, p path) {
	client, server := p.pair(t)
	_, port, err := net.SplitHostPort(client.RemoteAddr().String())
	must(t, err)
	exchange := func(from, to *net.TCPConn, n int) {
		_, err := from.Write(random(n))
		must(t, err)
		_, err = io.ReadFull(to, make([]byte, n))
		must(t, err)
	}
	exchange(client, server, 1000)
	exchange(server, client, 3000)
	want := forward.Traffic{Open: 1, Total: 1, ToGuest: 1000, FromGuest: 3000}
	counted := func() bool {
		for _, f := range p.manager.Forwards() {
			if strconv.Itoa(f.HostPort) == port {
				return f.Traffic == want
			}
		}
		return false
	}
	wait(t, "the traffic to be counted", counted)
	must(t, errors.Join(client.Close(), server.Close()))
	want.Open = 0
	wait(t, "the connection's end to be counted", counted)
}

// Connections that wait keep no pipes, of which a process has not so many.
func TestIdleConnectionsKeepNoPipes(t *testing.T) {
	p := path{newSite(t), ways()[1]}
	address := p.serve(t, echo)
	before := openFiles(t, "pipe:")
	const conns = 200
	for range conns {
		c := connect(t, address)
		_, err := c.Write([]byte{'x'})
		must(t, err)
		_, err = io.ReadFull(c, make([]byte, 1))
		must(t, err)
	}
	// One pipe for each direction would be four files a connection. A few are kept for all.
	wait(t, "the pipes to go", func() bool { return openFiles(t, "pipe:")-before < conns/2 })
	must(t, p.manager.Close())
	if left := openFiles(t, "pipe:") - before; left > 0 {
		t.Errorf("%d files of pipes are left when all is closed", left)
	}
}
