package guestlink

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/guestapi/wire"
)

// serveUDP answers each datagram until the test ends.
func serveUDP(t *testing.T, network, address string, answer func([]byte) []byte) string {
	t.Helper()
	conn, err := net.ListenPacket(network, address)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, wire.MaxDatagram)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(answer(buf[:n]), from)
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-ended
	})
	return conn.LocalAddr().String()
}

func dialDatagrams(t *testing.T, l *Link, address string) net.Conn {
	t.Helper()
	conn, err := l.DialDatagrams(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// exchange sends datagrams one by one until each is answered: any may be lost.
func exchange(t *testing.T, conn net.Conn, datagram []byte) []byte {
	t.Helper()
	answers := make(chan []byte, 1)
	go func() {
		buf := make([]byte, wire.MaxDatagram+1)
		n, err := conn.Read(buf)
		if err != nil {
			close(answers)
			return
		}
		answers <- buf[:n]
	}()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for range 20 {
		if n, err := conn.Write(datagram); err != nil || n != len(datagram) {
			t.Fatalf("%d bytes, %v", n, err)
		}
		select {
		case answer, ok := <-answers:
			if !ok {
				t.Fatal("the conversation ended")
			}
			return answer
		case <-again.C:
		}
	}
	t.Fatal("no answer")
	return nil
}

// Each datagram arrives as it is, of whatever length.
func TestDatagrams(t *testing.T) {
	l := newLink(t)
	address := serveUDP(t, "udp", "127.0.0.1:0", func(b []byte) []byte { return b })
	conn := dialDatagrams(t, l, address)
	if got := conn.RemoteAddr().String(); got != address {
		t.Errorf("remote address %s, want %s", got, address)
	}
	for _, size := range []int{0, 1, 1472, 32<<10 - 2, 32 << 10, wire.MaxDatagram} {
		datagram := make([]byte, size)
		_, _ = io.ReadFull(noise(), datagram)
		if got := exchange(t, conn, datagram); !bytes.Equal(got, datagram) {
			t.Errorf("sent %d bytes, got %d", size, len(got))
		}
	}
	if _, err := conn.Write(make([]byte, wire.MaxDatagram+1)); !errors.Is(err, wire.ErrTooLong) {
		t.Errorf("too long: %v", err)
	}
	for _, set := range []func(time.Time) error{conn.SetDeadline, conn.SetReadDeadline, conn.SetWriteDeadline} {
		if err := set(time.Now()); !errors.Is(err, os.ErrNoDeadline) {
			t.Errorf("got %v", err)
		}
	}
	conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("reading after Close: %v", err)
	}
	if _, err := conn.Write([]byte("x")); err == nil {
		t.Error("wrote after Close")
	}
}

// "localhost" is whichever loopback address has a socket.
func TestDatagramsLocalhost(t *testing.T) {
	l := newLink(t)
	for _, on := range []string{"udp4 127.0.0.1:0", "udp4 0.0.0.0:0", "udp6 [::1]:0", "udp6 [::]:0", "udp [::]:0"} {
		network, address, _ := strings.Cut(on, " ")
		_, port, err := net.SplitHostPort(serveUDP(t, network, address, func([]byte) []byte { return []byte(on) }))
		if err != nil {
			t.Fatal(err)
		}
		if got := exchange(t, dialDatagrams(t, l, "localhost:"+port), []byte("hello")); string(got) != on {
			t.Errorf("%s: got %q", on, got)
		}
	}
}

// A port that refuses ends nothing: its server may still come.
func TestDatagramsRefused(t *testing.T) {
	l := newLink(t)
	free, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.LocalAddr().String()
	free.Close()
	direct, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	if _, err := direct.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := direct.Read(make([]byte, 1)); err == nil {
		t.Fatal("the port does not refuse")
	}
	conn := dialDatagrams(t, l, address)
	for range 10 {
		if _, err := conn.Write([]byte("too early")); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Ping(t.Context()); err != nil { // all of it is there by now
		t.Fatal(err)
	}
	serveUDP(t, "udp", address, func(b []byte) []byte { return bytes.ToUpper(b) })
	if got := exchange(t, conn, []byte("now")); string(got) != "NOW" && string(got) != "TOO EARLY" {
		t.Errorf("got %q", got)
	}
	for _, bad := range []string{"127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", ""} {
		if _, err := l.DialDatagrams(t.Context(), bad); err == nil {
			t.Errorf("dialed %q", bad)
		}
	}
	var refused *DialError
	if _, err := l.DialDatagrams(t.Context(), "no name:9"); !errors.As(err, &refused) {
		t.Errorf("to nobody: %v", err)
	}
}

// Neither a flood that nobody reads nor one that nobody sends on holds anything up.
func TestDatagramFlood(t *testing.T) {
	l := newLink(t)
	address := serveUDP(t, "udp", "127.0.0.1:0", func(b []byte) []byte { return b })
	flooded := dialDatagrams(t, l, address)
	datagram := make([]byte, 8000)
	for range 4000 { // many times what any queue or window holds
		if _, err := flooded.Write(datagram); err != nil {
			t.Fatal(err)
		}
	}
	if got := exchange(t, dialDatagrams(t, l, address), []byte("small")); string(got) != "small" {
		t.Errorf("got %q", got)
	}
	if r := run(t, l, sh("head -c 5000000 /dev/zero"), nil); r.stdout.Len() != 5000000 {
		t.Errorf("beside a flood: %d bytes", r.stdout.Len())
	}
	for i := range 5 { // what arrived is whole
		if n, err := flooded.Read(make([]byte, wire.MaxDatagram)); err != nil || n != len(datagram) {
			t.Errorf("datagram %d: %d bytes, %v", i, n, err)
		}
	}
}

// The conversation ends with the link.
func TestDatagramsLost(t *testing.T) {
	p := startGuest(t, newFakeSystem())
	l := dial(t, p)
	conn := dialDatagrams(t, l, serveUDP(t, "udp", "127.0.0.1:0", func(b []byte) []byte { return b }))
	exchange(t, conn, []byte("x"))
	p.hangUp()
	for {
		if _, err := conn.Read(make([]byte, 1)); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.Write([]byte("x")); err == nil {
		t.Error("wrote to a link that is lost")
	}
	if _, err := l.DialDatagrams(t.Context(), "127.0.0.1:1"); !errors.Is(err, ErrLost) {
		t.Errorf("got %v", err)
	}
}

// Closing frees the guest's socket.
func TestDatagramsClose(t *testing.T) {
	l := newLink(t)
	got := make(chan string, 1)
	address := serveUDP(t, "udp", "127.0.0.1:0", func(b []byte) []byte {
		if len(b) > 0 {
			got <- string(b)
		}
		return b
	})
	conn := dialDatagrams(t, l, address)
	if _, err := conn.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if words := <-got; words != "last words" {
		t.Errorf("got %q", words)
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	var number int
	if _, err := fmt.Sscan(port, &number); err != nil {
		t.Fatal(err)
	}
	connected := fmt.Sprintf("0100007F:%04X 01", number) // as a peer of a connected socket
	for deadline := time.Now().Add(10 * time.Second); ; {
		table, err := os.ReadFile("/proc/net/udp")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(table), connected) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the guest's socket is still there")
		}
		time.Sleep(5 * time.Millisecond)
	}
}
