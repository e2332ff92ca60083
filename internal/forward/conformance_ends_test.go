package forward_test

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
)

func testClientGone(t *testing.T, p path) {
	client, server := p.pair(t)
	_, err := client.Write([]byte("last words"))
	must(t, err)
	must(t, client.Close())
	if got, err := io.ReadAll(server); err != nil || string(got) != "last words" {
		t.Errorf("the server got %q, %v", got, err)
	}
	// Nobody takes what it says, and it is told.
	for err == nil {
		_, err = server.Write(make([]byte, 32<<10))
	}
	if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Error("writing to a client that is gone:", err)
	}
}

func testServerGone(t *testing.T, p path) {
	l, address := p.listen(t)
	client := connect(t, address)
	server, err := l.AcceptTCP()
	must(t, err)
	_, err = server.Write([]byte("last words"))
	must(t, err)
	must(t, errors.Join(server.Close(), l.Close()))
	if got, err := io.ReadAll(client); err != nil || string(got) != "last words" {
		t.Errorf("the client got %q, %v", got, err)
	}
	for err == nil {
		_, err = client.Write(make([]byte, 32<<10))
	}
	if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Error("writing to a server that is gone:", err)
	}
	wantNobody(t, address)
}

// wantNobody checks that a connection is refused, or reset at once.
func wantNobody(t *testing.T, address string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, patience)
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		_, err = io.ReadAll(c)
	}
	if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("with no server: %v", err)
	}
}

func testServerLate(t *testing.T, p path) {
	l := p.Listen("0.0.0.0:0")
	guest := l.Addr().(*net.TCPAddr)
	l.Close()
	address := p.expose(t, forward.TCP, guest.Port)
	wantNobody(t, address)
	go serveName(p.Listen(guest.String()), "here")
	if got, err := io.ReadAll(connect(t, address)); err != nil || string(got) != "here" {
		t.Errorf("once there is a server: %q, %v", got, err)
	}
}

func testResets(t *testing.T, p path) {
	for _, from := range []string{"client", "server"} {
		t.Run("from "+from, func(t *testing.T) {
			a, b := p.pair(t)
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
