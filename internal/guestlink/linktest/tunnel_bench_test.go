package linktest_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"

	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/guestlink/linktest"
	"github.com/smolvm/smolvm/internal/network/nettest"
)

// openLink makes a link to a guest in a namespace.
func openLink(t testing.TB) (*nettest.Namespace, *guestlink.Link) {
	t.Helper()
	ns := nettest.New(t)
	g, err := linktest.Start(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	port, err := g.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	link, err := guestlink.Dial(t.Context(), port, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { link.Close() })
	return ns, link
}

// serve serves connections one by one with handle until the test ends.
func serve(t testing.TB, l net.Listener, handle func(*net.TCPConn)) {
	t.Helper()
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			}()
		}
	}()
}

// forward carries connections to a port of localhost over the link.
func forward(t testing.TB, link *guestlink.Link, address string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, func(client *net.TCPConn) {
		conn, err := link.DialContext(context.Background(), "tcp", address)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		back := make(chan struct{})
		go func() {
			defer close(back)
			_, _ = io.CopyBuffer(struct{ io.Writer }{client}, struct{ io.Reader }{conn}, make([]byte, 64<<10))
			_ = client.CloseWrite()
		}()
		_, _ = io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{client}, make([]byte, 64<<10))
		_ = conn.CloseWrite()
		<-back
	})
	return l.Addr().String()
}

const piece = 128 << 10

// send sends until the other end has all.
func send(conn *net.TCPConn, n int) error {
	buf := make([]byte, piece)
	for ; n > 0; n-- {
		if _, err := conn.Write(buf); err != nil {
			return err
		}
	}
	return conn.CloseWrite()
}

func receive(conn io.Reader, pieces int) error {
	buf := make([]byte, piece)
	for n := int64(pieces) * piece; n > 0; {
		got, err := conn.Read(buf[:min(n, piece)])
		if err != nil {
			return err
		}
		n -= int64(got)
	}
	return nil
}

// BenchmarkTunnel measures streams between a client on the host's localhost and a server in
// the guest. Each operation carries 128 KiB.
func BenchmarkTunnel(b *testing.B) {
	ns, link := openLink(b)
	var pieces int
	sink, source := ns.Listen("127.0.0.1:80"), ns.Listen("127.0.0.1:81")
	serve(b, sink, func(c *net.TCPConn) {
		if receive(c, pieces) == nil {
			_, _ = c.Write([]byte("k"))
		}
	})
	serve(b, source, func(c *net.TCPConn) { _ = send(c, pieces) })
	for name, address := range map[string]string{"up": "127.0.0.1:80", "down": "127.0.0.1:81"} {
		local := forward(b, link, address)
		b.Run(name, func(b *testing.B) {
			pieces = b.N
			c, err := net.Dial("tcp", local)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			b.SetBytes(piece)
			if name == "up" {
				if err = send(c.(*net.TCPConn), b.N); err == nil {
					_, err = io.ReadFull(c, make([]byte, 1))
				}
			} else {
				err = receive(c, b.N)
			}
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkTunnelRequest measures a connection with one byte there and one back.
func BenchmarkTunnelRequest(b *testing.B) {
	ns, link := openLink(b)
	serve(b, ns.Listen("127.0.0.1:80"), func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	local := forward(b, link, "127.0.0.1:80")
	for b.Loop() {
		c, err := net.Dial("tcp", local)
		if err != nil {
			b.Fatal(err)
		}
		_, err = c.Write([]byte("x"))
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		if err := errors.Join(err, c.Close()); err != nil {
			b.Fatal(err)
		}
	}
}
