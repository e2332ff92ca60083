package forward_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
)

// ways are the ways through this package and the kernel.
func ways() []struct {
	name, host string
	transport  forward.Transport
} {
	return []struct {
		name, host string
		transport  forward.Transport
	}{
		{"kernel", "127.0.0.1", forward.NFTables},
		{"spliced", "::1", forward.NFTables},
		{"tunnel", "127.0.0.1", forward.SSHTunnel},
	}
}

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

func TestHalfClose(t *testing.T) {
	m := newMachine(t)
	for _, way := range ways() {
		t.Run(way.name, func(t *testing.T) {
			client, server, _ := pair(t, m, way.host, way.transport)
			for _, d := range []struct {
				name     string
				from, to *net.TCPConn
			}{{"up", client, server}, {"down", server, client}} {
				data := make([]byte, 1<<20)
				rand.Read(data)
				sent := make(chan error, 1)
				go func() {
					_, err := d.from.Write(data)
					sent <- errors.Join(err, d.from.CloseWrite())
				}()
				got, err := io.ReadAll(d.to)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s: %d bytes, %v", d.name, len(got), err)
				}
				must(t, <-sent)
			}
		})
	}
}

func TestResetsArePassedOn(t *testing.T) {
	m := newMachine(t)
	for _, way := range ways() {
		for _, from := range []string{"client", "server"} {
			t.Run(way.name+" from "+from, func(t *testing.T) {
				a, b, _ := pair(t, m, way.host, way.transport)
				if from == "server" {
					a, b = b, a
				}
				must(t, a.SetLinger(0))
				must(t, a.Close())
				if _, err := io.ReadAll(b); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("the other end saw %v", err)
				}
			})
		}
	}
}

func TestNobodyListens(t *testing.T) {
	m := newMachine(t)
	for i, way := range ways() {
		t.Run(way.name, func(t *testing.T) {
			f := m.expose(forward.Request{GuestPort: 90 + i, Transport: way.transport})
			_, err := ask(way.host, f.HostPort)
			if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("got %v", err)
			}
		})
	}
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
			// A connection that the kernel forgot is noticed by what is sent on it.
			_, writeErr := client.Write([]byte("late"))
			_, readErr := io.ReadAll(client)
			if err := errors.Join(writeErr, readErr); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
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

func TestBackpressure(t *testing.T) {
	m := newMachine(t)
	for _, way := range ways() {
		t.Run(way.name, func(t *testing.T) {
			client, server, _ := pair(t, m, way.host, way.transport)
			// Nobody reads, so sending has to stop.
			client.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			sent := 0
			chunk := make([]byte, 1<<20)
			for sent < 256<<20 {
				n, err := client.Write(chunk)
				sent += n
				if errors.Is(err, os.ErrDeadlineExceeded) {
					break
				}
				must(t, err)
			}
			if sent >= 256<<20 {
				t.Fatal("256 MiB went into nowhere")
			}
			must(t, client.CloseWrite())
			got, err := io.Copy(io.Discard, server)
			if err != nil || got != int64(sent) {
				t.Errorf("sent %d, received %d, %v", sent, got, err)
			}
		})
	}
}

func TestManyConnections(t *testing.T) {
	m := newMachine(t)
	l := m.Listen("0.0.0.0:90")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	f := m.expose(forward.Request{GuestPort: 90, Transport: forward.SSHTunnel})
	const n = 1000
	var wg sync.WaitGroup
	start := make(chan struct{})
	var open sync.WaitGroup
	open.Add(n)
	for range n {
		wg.Go(func() {
			c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(f.HostPort)))
			open.Done()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			<-start // all are open at once
			c.SetDeadline(time.Now().Add(3 * patience))
			io.WriteString(c, "x")
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Error(err)
			}
		})
	}
	open.Wait()
	close(start)
	wg.Wait()
}

func TestOutOfFileDescriptors(t *testing.T) {
	m := newMachine(t)
	m.serve("0.0.0.0:90", "page")
	f := m.expose(forward.Request{GuestPort: 90, Transport: forward.SSHTunnel})
	wantAnswer(t, "127.0.0.1", f.HostPort, "page") // from now on the guest's server waits in accept
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
		wait(t, "a warning", func() bool { return m.log.count("could not accept") > 0 })
	}()
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	buf := make([]byte, 4)
	if n, err := unix.Read(fd, buf); err != nil || n != 4 || string(buf) != "page" {
		t.Errorf("once there are descriptors again: %q, %v; log: %s", buf, err, m.log)
	}
	if n := m.log.count("could not accept"); n > 20 {
		t.Errorf("it did not wait between attempts: %d warnings", n)
	}
}

func TestCloseInterruptsDial(t *testing.T) {
	dialing := make(chan struct{})
	m := newMachine(t, func(c *forward.Config) {
		c.Tunnel = func(ctx context.Context, _ uint16) (forward.Conn, error) {
			close(dialing)
			<-ctx.Done()
			return nil, ctx.Err()
		}
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
