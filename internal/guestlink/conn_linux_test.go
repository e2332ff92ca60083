package guestlink

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serveTCP serves every connection with handle, on loopback, until the test ends.
func serveTCP(t *testing.T, network, address string, handle func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	var handlers sync.WaitGroup
	handlers.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			handlers.Go(func() {
				defer conn.Close()
				handle(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		handlers.Wait()
	})
	return l.Addr().String()
}

func mustDial(t *testing.T, l *Link, address string) *Conn {
	t.Helper()
	conn, err := l.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Each direction ends alone, whichever ends first.
func TestDialHalfClose(t *testing.T) {
	l := newLink(t)
	t.Run("ours first", func(t *testing.T) {
		address := serveTCP(t, "tcp", "127.0.0.1:0", func(conn *net.TCPConn) {
			data, _ := io.ReadAll(conn)
			_, _ = conn.Write([]byte(strings.ToUpper(string(data))))
		})
		conn := mustDial(t, l, address)
		if _, err := conn.Write([]byte("shout")); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if data, err := io.ReadAll(conn); err != nil || string(data) != "SHOUT" {
			t.Errorf("got %q, %v", data, err)
		}
	})
	t.Run("theirs first", func(t *testing.T) {
		got := make(chan string, 1)
		address := serveTCP(t, "tcp", "127.0.0.1:0", func(conn *net.TCPConn) {
			_, _ = conn.Write([]byte("bye"))
			_ = conn.CloseWrite()
			data, _ := io.ReadAll(conn)
			got <- string(data)
		})
		conn := mustDial(t, l, address)
		if data, err := io.ReadAll(conn); err != nil || string(data) != "bye" {
			t.Errorf("got %q, %v", data, err)
		}
		if _, err := conn.Write([]byte("after your end")); err != nil {
			t.Fatal(err)
		}
		conn.Close() // and what was written still arrives
		if data := <-got; data != "after your end" {
			t.Errorf("got %q", data)
		}
	})
}

func TestDialBigStreams(t *testing.T) {
	l := newLink(t)
	address := serveTCP(t, "tcp", "127.0.0.1:0", func(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) })
	conn := mustDial(t, l, address)
	sum := sha256.New()
	go func() {
		_, _ = io.Copy(conn, io.TeeReader(io.LimitReader(noise(), 64<<20), sum))
		_ = conn.CloseWrite()
	}()
	back := sha256.New()
	if n, err := io.Copy(back, conn); err != nil || n != 64<<20 {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if !bytes.Equal(sum.Sum(nil), back.Sum(nil)) {
		t.Error("what came back differs")
	}
}

// A reset is passed on, either way, and is not taken for an orderly end.
func TestDialReset(t *testing.T) {
	l := newLink(t)
	t.Run("theirs", func(t *testing.T) {
		address := serveTCP(t, "tcp", "127.0.0.1:0", func(conn *net.TCPConn) {
			_, _ = io.ReadFull(conn, make([]byte, 1))
			_ = conn.SetLinger(0)
		})
		conn := mustDial(t, l, address)
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("reading: %v", err)
		}
		if _, err := conn.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("writing: %v", err)
		}
	})
	// The server waits for one more byte, until the end.
	ending := func(t *testing.T) (address string, end chan error) {
		end = make(chan error, 1)
		return serveTCP(t, "tcp", "127.0.0.1:0", func(conn *net.TCPConn) {
			_, _ = conn.Write([]byte("x"))
			_, err := conn.Read(make([]byte, 1))
			end <- err
		}), end
	}
	for how, want := range map[string]error{"ours": syscall.ECONNRESET, "not a reset": io.EOF} {
		t.Run(how, func(t *testing.T) {
			address, end := ending(t)
			conn := mustDial(t, l, address)
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if want != io.EOF {
				if err := conn.SetLinger(0); err != nil {
					t.Fatal(err)
				}
			}
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			if err := <-end; !errors.Is(err, want) {
				t.Errorf("the server saw %v, not %v", err, want)
			}
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("reading after Close: %v", err)
			}
			if _, err := conn.Write(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("writing after Close: %v", err)
			}
		})
	}
	t.Run("a server that wrote", func(t *testing.T) {
		closed := make(chan struct{})
		address := serveTCP(t, "tcp", "127.0.0.1:0", func(conn *net.TCPConn) {
			defer close(closed)
			for {
				if _, err := conn.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		})
		mustDial(t, l, address).Close()
		<-closed
	})
}

// A lost link is no orderly end, to either side.
func TestDialLost(t *testing.T) {
	p := startGuest(t, newFakeSystem())
	l := dial(t, p)
	served := make(chan error, 1)
	address := serveTCP(t, "tcp", "127.0.0.1:0", func(conn *net.TCPConn) {
		_, _ = conn.Write([]byte("x"))
		_, err := conn.Read(make([]byte, 1))
		served <- err
	})
	conn := mustDial(t, l, address)
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p.hangUp()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, ErrLost) || errors.Is(err, io.EOF) {
		t.Errorf("reading: %v", err)
	}
	if _, err := conn.Write(make([]byte, 1)); !errors.Is(err, ErrLost) {
		t.Errorf("writing: %v", err)
	}
	if err := <-served; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server saw %v", err)
	}
}

// A lost link ends a connection whose server reads nothing, too.
func TestDialLostWhileFull(t *testing.T) {
	p := startGuest(t, newFakeSystem())
	l := dial(t, p)
	ended := make(chan bool, 1)
	address := serveTCP(t, "tcp", "127.0.0.1:0", func(conn *net.TCPConn) {
		raw, err := conn.SyscallConn()
		if err != nil {
			return
		}
		_ = raw.Control(func(fd uintptr) {
			n, err := 0, error(unix.EINTR)
			for errors.Is(err, unix.EINTR) {
				n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, 20_000) // for a reset
			}
			ended <- n == 1
		})
	})
	conn := mustDial(t, l, address)
	writing := make(chan error, 1)
	var written atomic.Int64
	go func() {
		data := make([]byte, 64<<10)
		for {
			if _, err := conn.Write(data); err != nil {
				writing <- err
				return
			}
			written.Add(int64(len(data)))
		}
	}()
	for last := int64(-1); last != written.Load(); { // until nothing moves any more
		last = written.Load()
		time.Sleep(200 * time.Millisecond)
	}
	p.hangUp()
	if err := <-writing; !errors.Is(err, ErrLost) {
		t.Errorf("writing: %v", err)
	}
	if !<-ended {
		t.Error("the server still has its connection")
	}
}

func TestDialRefused(t *testing.T) {
	l := newLink(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	mustDial(t, l, address) // it can
	free.Close()
	var refused *DialError
	if _, err := l.DialContext(t.Context(), "tcp", address); !errors.As(err, &refused) || errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:http", ""} {
		if _, err := l.DialContext(t.Context(), "tcp", bad); err == nil {
			t.Errorf("dialed %q", bad)
		}
	}
	if _, err := l.DialContext(t.Context(), "udp", "127.0.0.1:53"); err == nil {
		t.Error("dialed UDP")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.DialContext(ctx, "tcp", address); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := l.Ping(t.Context()); err != nil {
		t.Error("the link suffered: ", err)
	}
}

// "localhost" is whichever loopback address has a listener.
func TestDialLocalhost(t *testing.T) {
	l := newLink(t)
	for _, on := range []string{"127.0.0.1:0", "[::1]:0"} {
		address := serveTCP(t, "tcp", on, func(conn *net.TCPConn) { _, _ = conn.Write([]byte(on)) })
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		if data, err := io.ReadAll(mustDial(t, l, "localhost:"+port)); err != nil || string(data) != on {
			t.Errorf("%s: got %q, %v", on, data, err)
		}
	}
}

// A reader that is slow holds its own connection and no other.
func TestDialSlowReader(t *testing.T) {
	l := newLink(t)
	full := make(chan struct{})
	address := serveTCP(t, "tcp", "127.0.0.1:0", func(conn *net.TCPConn) {
		_ = conn.SetWriteBuffer(4096)
		for {
			_ = conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err := conn.Write(make([]byte, 64<<10)); errors.Is(err, os.ErrDeadlineExceeded) {
				close(full) // nothing moves any more
				return
			}
		}
	})
	conn := mustDial(t, l, address)
	<-full
	if r := run(t, l, sh("head -c 5000000 /dev/zero"), nil); r.stdout.Len() != 5000000 {
		t.Errorf("beside a slow reader: %d bytes", r.stdout.Len())
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Error(err)
	}
}

// It says that it has no deadlines.
func TestConnDeadlines(t *testing.T) {
	l := newLink(t)
	address := serveTCP(t, "tcp", "127.0.0.1:0", func(conn *net.TCPConn) { _, _ = io.Copy(io.Discard, conn) })
	conn := mustDial(t, l, address)
	for _, set := range []func(time.Time) error{conn.SetDeadline, conn.SetReadDeadline, conn.SetWriteDeadline} {
		if err := set(time.Now()); !errors.Is(err, os.ErrNoDeadline) {
			t.Errorf("got %v", err)
		}
	}
	if got := conn.RemoteAddr().String(); got != address {
		t.Errorf("remote address %s, want %s", got, address)
	}
}
