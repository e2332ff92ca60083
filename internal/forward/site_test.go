package forward_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/guestlink/linktest"
	"github.com/smolvm/smolvm/internal/network"
	"github.com/smolvm/smolvm/internal/network/nettest"
)

// way is one of the ways through this package and the kernel.
type way struct {
	name, host string
	transport  forward.Transport
}

func ways() []way {
	return []way{
		{"nftables", "127.0.0.1", forward.NFTables},
		{"proxy", "::1", forward.NFTables},
		{"tunnel", "127.0.0.1", forward.SSHTunnel},
	}
}

// site is a guest on a virtual cable, which is faster than a machine's TAP, so that
// it is the ways that are tried and measured. Its tunnel is the real one: an SSH
// session with the real guest server.
type site struct {
	*nettest.Namespace
	manager *forward.Manager
	runtime string // the directory that processes share
	guest   *linktest.Guest
	link    *guestlink.Link
}

// siteAddr is the guest's address.
var siteAddr = netip.MustParseAddr("198.18.0.1")

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{Namespace: nettest.Neighbour(t, "smol0", "198.18.0.0/31", siteAddr.String()+"/31", false), runtime: t.TempDir()}
	must(t, nettest.Set("ipv4/conf/smol0/route_localnet", "1"))
	host := network.NewHost(network.Options{RuntimeDir: s.runtime})
	t.Cleanup(func() { must(t, errors.Join(host.Reap(context.Background()), host.Close())) })
	go serveName(s.Listen(siteAddr.String()+":22"), "SSH-2.0-test")

	var err error
	s.guest, err = linktest.Start(s.Namespace)
	must(t, err)
	t.Cleanup(func() { must(t, s.guest.Close()) })
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	port, err := s.guest.Dial(ctx)
	must(t, err)
	s.link, err = guestlink.Dial(ctx, port, slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() { must(t, s.link.Close()) })

	s.manager = forward.NewManager(forward.Config{
		VM: "site", Table: host.Table(), Guest: siteAddr, Tunnel: linkDialer{s},
	})
	t.Cleanup(func() { must(t, s.manager.Close()) })
	return s
}

// linkDialer is the way into the guest through its channel.
type linkDialer struct{ *site }

func (d linkDialer) DialStream(ctx context.Context, port uint16) (forward.Conn, error) {
	return d.link.DialContext(ctx, "tcp", localhost(port))
}

func (d linkDialer) DialDatagrams(ctx context.Context, port uint16) (net.Conn, error) {
	return d.link.DialDatagrams(ctx, localhost(port))
}

func localhost(port uint16) string { return net.JoinHostPort("localhost", strconv.Itoa(int(port))) }

// path is one way to one site.
type path struct {
	*site
	way
}

// expose exposes a guest's port until the test ends, and returns where it answers.
func (p path) expose(t testing.TB, protocol forward.Protocol, guestPort int) (address string) {
	t.Helper()
	f, err := p.manager.Expose(t.Context(), forward.Request{Protocol: protocol, GuestPort: guestPort, Transport: p.transport})
	must(t, err)
	if f.Transport != p.transport {
		t.Fatalf("got %+v", f)
	}
	t.Cleanup(func() { must(t, unexpose(context.Background(), p.manager, f)) })
	return net.JoinHostPort(p.host, strconv.Itoa(f.HostPort))
}

// listen listens on some port of the guest, and returns where it is exposed.
func (p path) listen(t testing.TB) (l *net.TCPListener, address string) {
	t.Helper()
	l = p.Listen("0.0.0.0:0")
	t.Cleanup(func() { l.Close() })
	return l, p.expose(t, forward.TCP, l.Addr().(*net.TCPAddr).Port)
}

// serve has every connection to some port of the guest handled, and closed
// afterwards. It returns where the port is exposed.
func (p path) serve(t testing.TB, handle func(*net.TCPConn)) (address string) {
	t.Helper()
	l, address := p.listen(t)
	go serveConns(l, handle)
	return address
}

func serveConns(l *net.TCPListener, handle func(*net.TCPConn)) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			handle(c)
		}()
	}
}

// pair returns both ends of a connection through the path.
func (p path) pair(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	l, address := p.listen(t)
	client = connect(t, address)
	l.SetDeadline(time.Now().Add(patience))
	server, err := l.AcceptTCP()
	must(t, err)
	t.Cleanup(func() { server.Close() })
	server.SetDeadline(time.Now().Add(patience))
	return client, server
}

// connect connects for as long as the test, if that is not too long.
func connect(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, patience)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(3 * patience))
	return c.(*net.TCPConn)
}
