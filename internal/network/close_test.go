package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/network/nettest"
)

// echoer is a guest that answers what it is sent with its name before it.
type echoer struct {
	*Interface
	name string
	// ended has the error that each TCP connection's server ended with.
	ended chan error
	// heard has what came by UDP.
	heard chan string

	serving sync.WaitGroup
	mu      sync.Mutex
	conns   []net.Conn
}

// echoPort is where an echoer answers, by TCP and UDP.
const echoPort = 7

func newEchoer(t testing.TB, h *Host, name string) *echoer {
	t.Helper()
	g := &echoer{Interface: attach(t, h, Attachment{VM: name}), name: name, ended: make(chan error, 16), heard: make(chan string, 16)}
	n := guestOn(t, g.Interface)
	t.Cleanup(g.close)
	tcp, udp := n.Listen(fmt.Sprintf("0.0.0.0:%d", echoPort)), listenUDP(t, n, echoPort)
	g.serving.Go(func() { g.serveTCP(tcp) })
	g.serving.Go(func() { g.serveUDP(udp) })
	return g
}

// close runs after the listeners were closed.
func (g *echoer) close() {
	g.mu.Lock()
	for _, c := range g.conns {
		c.Close()
	}
	g.mu.Unlock()
	g.serving.Wait()
}

func listenUDP(t testing.TB, n *nettest.Namespace, port int) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	n.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

func (g *echoer) serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		g.mu.Lock()
		g.conns = append(g.conns, c)
		g.mu.Unlock()
		g.serving.Go(func() {
			buf := make([]byte, 64<<10)
			for {
				n, err := c.Read(buf)
				if err != nil {
					select {
					case g.ended <- err:
					default: // the test does not listen
					}
					return
				}
				fmt.Fprintf(c, "%s%s", g.name, buf[:n])
			}
		})
	}
}

func (g *echoer) serveUDP(c *net.UDPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		select {
		case g.heard <- string(buf[:n]):
		default: // the test does not listen
		}
		if _, err := c.WriteToUDPAddrPort(append([]byte(g.name), buf[:n]...), from); err != nil {
			return
		}
	}
}

func (g *echoer) mapping(protocol forward.Protocol, hostPort uint16) forward.Mapping {
	return forward.Mapping{Protocol: protocol, HostPort: hostPort, Guest: netip.AddrPortFrom(g.GuestAddr, echoPort)}
}

// expose puts mappings into the table.
func expose(t testing.TB, h *Host, mappings ...forward.Mapping) {
	t.Helper()
	if err := h.Table().Add(context.Background(), mappings...); err != nil {
		t.Fatal(err)
	}
}

// unexpose takes them out.
func unexpose(t testing.TB, h *Host, mappings ...forward.Mapping) {
	t.Helper()
	if err := h.Table().Delete(context.Background(), mappings...); err != nil {
		t.Fatal(err)
	}
}

// dialHere connects to a port of localhost until the test ends.
func dialHere(t testing.TB, network string, port uint16) net.Conn {
	t.Helper()
	c, err := net.DialTimeout(network, fmt.Sprintf("127.0.0.1:%d", port), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// say sends a word and returns the answer.
func say(c net.Conn, word string, limit time.Duration) (string, error) {
	c.SetDeadline(time.Now().Add(limit))
	if _, err := io.WriteString(c, word); err != nil {
		return "", err
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func wantSay(t *testing.T, c net.Conn, word, want string) {
	t.Helper()
	if got, err := say(c, word, patience); err != nil || got != want {
		t.Fatalf("said %q, got %q, %v, want %q", word, got, err, want)
	}
}

// eachWayToEnd runs a test with connections ended by the kernel's own search, where it has
// one, and by listing them all.
func eachWayToEnd(t *testing.T, test func(t *testing.T, h *Host)) {
	for name, listing := range map[string]bool{"search": false, "listing": true} {
		t.Run(name, func(t *testing.T) {
			h := testHost(t)
			h.cannotFlush.Store(listing)
			test(t, h)
		})
	}
}

func TestClosedTCPForwardIsClosed(t *testing.T) {
	eachWayToEnd(t, func(t *testing.T, h *Host) {
		a, b := newEchoer(t, h, "a"), newEchoer(t, h, "b")
		m := a.mapping(forward.TCP, 8000)
		expose(t, h, m, a.mapping(forward.TCP, 8001))
		client := dialHere(t, "tcp", 8000)
		mapped6, err := dialFromIPv6(8000)
		if err != nil {
			t.Fatal(err)
		}
		defer mapped6.Close()
		other := dialHere(t, "tcp", 8001)
		direct, err := net.Dial("tcp", m.Guest.String())
		if err != nil {
			t.Fatal(err)
		}
		defer direct.Close()
		conns := []net.Conn{client, mapped6, other, direct}
		for _, c := range conns {
			wantSay(t, c, "1", "a1")
		}
		// Without the element connections live on; that is what conntrack is for.
		unexpose(t, h, m)
		for _, c := range conns {
			wantSay(t, c, "2", "a2")
		}

		told := make(chan error)
		for _, c := range conns[:2] {
			c.SetDeadline(time.Now().Add(patience))
			go func() {
				_, err := c.Read(make([]byte, 1))
				told <- err
			}()
		}
		if err := h.Table().EndFlows(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := <-told; !errors.Is(err, unix.ECONNABORTED) {
				t.Errorf("a client that waits was told %v", err)
			}
			if err := <-a.ended; !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the guest's server was told %v", err)
			}
		}
		wantSay(t, other, "3", "a3")
		wantSay(t, direct, "3", "a3")

		// The port can be another guest's at once.
		expose(t, h, b.mapping(forward.TCP, 8000))
		wantSay(t, dialHere(t, "tcp", 8000), "4", "b4")
	})
}

// dialFromIPv6 connects to a port of 127.0.0.1 as programs do that have sockets of IPv6 only.
func dialFromIPv6(port uint16) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	to := &unix.SockaddrInet6{Port: int(port), Addr: netip.AddrFrom4([4]byte{127, 0, 0, 1}).As16()}
	if err := unix.Connect(fd, to); err != nil {
		return nil, err
	}
	return net.FileConn(file)
}

// TestClosedTCPForwardOfUnabortedClient is about kernels that cannot end a
// client's socket.
func TestClosedTCPForwardOfUnabortedClient(t *testing.T) {
	eachWayToEnd(t, func(t *testing.T, h *Host) {
		a, b := newEchoer(t, h, "a"), newEchoer(t, h, "b")
		m := a.mapping(forward.TCP, 8000)
		expose(t, h, m)
		client := dialHere(t, "tcp", 8000)
		wantSay(t, client, "1", "a1")
		unexpose(t, h, m)
		wantSay(t, client, "2", "a2")
		which, err := forwardedFlows(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.endFlows(which); err != nil {
			t.Fatal(err)
		}
		expose(t, h, b.mapping(forward.TCP, 8000))
		if got, err := say(client, "3", patience); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the old connection got %q, %v", got, err)
		}
	})
}

func TestClosedUDPForwardIsClosed(t *testing.T) {
	eachWayToEnd(t, func(t *testing.T, h *Host) {
		a, b := newEchoer(t, h, "a"), newEchoer(t, h, "b")
		m := a.mapping(forward.UDP, 8000)
		expose(t, h, m, a.mapping(forward.UDP, 8001))
		client, other := dialHere(t, "udp", 8000), dialHere(t, "udp", 8001)
		wantSay(t, client, "1", "a1")
		wantSay(t, other, "1", "a1")
		unexpose(t, h, m)
		expose(t, h, b.mapping(forward.UDP, 8000))
		wantSay(t, client, "2", "a2") // as for TCP

		if err := h.Table().EndFlows(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		wantSay(t, client, "3", "b3")
		wantSay(t, other, "3", "a3")

		// Exposed no more, it reaches nobody.
		unexpose(t, h, b.mapping(forward.UDP, 8000))
		if err := h.Table().EndFlows(t.Context(), b.mapping(forward.UDP, 8000)); err != nil {
			t.Fatal(err)
		}
		if got, err := say(client, "4", impatience); err == nil {
			t.Errorf("a closed port answers %q", got)
		}
		for _, g := range []*echoer{a, b} {
			for len(g.heard) > 0 {
				if word := <-g.heard; word == "4" {
					t.Errorf("guest %s heard what was sent to a closed port", g.name)
				}
			}
		}
	})
}

// TestListenersClientsAreLeftAlone: who listens on the port here has clients, too,
// which are not the table's.
func TestListenersClientsAreLeftAlone(t *testing.T) {
	h := testHost(t)
	a := newEchoer(t, h, "a")
	l, err := net.Listen("tcp", "127.0.0.1:8000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client := dialHere(t, "tcp", 8000)
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	m := a.mapping(forward.TCP, 8000)
	expose(t, h, m)
	forwarded := dialHere(t, "tcp", 8000)
	wantSay(t, forwarded, "1", "a1")
	unexpose(t, h, m)
	if err := h.Table().EndFlows(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if got, err := say(forwarded, "2", patience); err == nil {
		t.Errorf("a forwarded connection got %q", got)
	}
	io.WriteString(server, "hello")
	wantSay(t, client, "2", "hello")
}

// TestKernelSearches makes sure that where the kernel can look for connections
// by itself, it is asked for that.
func TestKernelSearches(t *testing.T) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	h := testHost(t)
	if err := h.endFlows(guestFlows(netip.MustParseAddr("198.18.0.1"))...); err != nil {
		t.Fatal(err)
	}
	if can, want := !h.cannotFlush.Load(), major > 6 || (major == 6 && minor >= 11); can != want {
		t.Errorf("Linux %d.%d can search: %v", major, minor, can)
	}
}

func TestGuestsFlowsEnd(t *testing.T) {
	eachWayToEnd(t, func(t *testing.T, h *Host) {
		a, b := newEchoer(t, h, "a"), newEchoer(t, h, "b")
		expose(t, h, a.mapping(forward.UDP, 8000), b.mapping(forward.UDP, 8001))
		toA, toB := dialHere(t, "udp", 8000), dialHere(t, "udp", 8001)
		wantSay(t, toA, "1", "a1")
		wantSay(t, toB, "1", "b1")
		count := func(guest netip.Addr) int {
			all, err := h.listFlows(flows{answers: netip.AddrPortFrom(guest, 0)})
			if err != nil {
				t.Fatal(err)
			}
			return len(all)
		}
		if count(a.GuestAddr) != 1 || count(b.GuestAddr) != 1 {
			t.Fatalf("there are %d and %d connections", count(a.GuestAddr), count(b.GuestAddr))
		}
		if err := h.endFlows(guestFlows(a.GuestAddr)...); err != nil {
			t.Fatal(err)
		}
		if count(a.GuestAddr) != 0 || count(b.GuestAddr) != 1 {
			t.Errorf("there are %d and %d connections", count(a.GuestAddr), count(b.GuestAddr))
		}
	})
}
