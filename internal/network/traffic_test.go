package network

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
)

func trafficOf(t testing.TB, h *Host, mappings ...forward.Mapping) []forward.Traffic {
	t.Helper()
	traffic, err := h.Table().Traffic(t.Context(), mappings...)
	if err != nil {
		t.Fatal(err)
	}
	return traffic
}

func TestTrafficOfUDP(t *testing.T) {
	h := testHost(t)
	g := newEchoer(t, h, "guest")
	m, idle := g.mapping(forward.UDP, 8000), g.mapping(forward.UDP, 8001)
	expose(t, h, m, idle)
	const clients, words, headers = 3, 10, 20 + 8
	for range clients {
		c := dialHere(t, "udp", 8000)
		for range words {
			wantSay(t, c, "word", "guestword")
		}
	}
	want := forward.Traffic{
		Open: clients, Total: clients,
		ToGuest:   clients * words * (headers + int64(len("word"))),
		FromGuest: clients * words * (headers + int64(len("guestword"))),
	}
	check := func(when string) {
		t.Helper()
		if got := trafficOf(t, h, m, idle); got[0] != want || got[1] != (forward.Traffic{}) {
			t.Errorf("%s: %+v, want %+v and nothing", when, got, want)
		}
	}
	check("counted")
	// The counts are the kernel's: another process reads the same.
	other := NewHost(Options{RuntimeDir: h.dir})
	defer other.Close()
	if got := trafficOf(t, other, m); got[0] != want {
		t.Errorf("another process counts %+v, want %+v", got[0], want)
	}
	// The table is made anew, with its counts.
	run(t, "nft", "flush chain ip smolvm input")
	if err := h.Reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("after replacing the table")
	// Adding it again changes nothing, making it anew begins anew.
	expose(t, h, m)
	check("after adding it again")
	unexpose(t, h, m)
	if got := trafficOf(t, h, m); got[0] != (forward.Traffic{}) {
		t.Errorf("a mapping that is gone has %+v", got[0])
	}
	if err := h.Table().EndFlows(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	expose(t, h, m)
	if got := trafficOf(t, h, m); got[0] != (forward.Traffic{}) {
		t.Errorf("a new mapping has %+v", got[0])
	}
}

func TestTrafficOfTCP(t *testing.T) {
	h := testHost(t)
	g := newEchoer(t, h, "")
	m := g.mapping(forward.TCP, 8000)
	expose(t, h, m)
	const size = 1 << 20
	for range 2 {
		c := dialHere(t, "tcp", 8000)
		sent := make(chan error)
		go func() {
			_, err := io.WriteString(c, strings.Repeat("x", size))
			sent <- err
		}()
		c.SetReadDeadline(time.Now().Add(patience))
		if n, err := io.CopyN(io.Discard, c, size); err != nil {
			t.Fatalf("%d bytes came back: %v", n, err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
	got := trafficOf(t, h, m)[0]
	if got.Total != 2 || got.Open != 2 {
		t.Errorf("counted %d connections, %d of them open", got.Total, got.Open)
	}
	// Headers and acknowledgements are a small part.
	for _, bytes := range []int64{got.ToGuest, got.FromGuest} {
		if bytes < 2*size || bytes > 2*size*5/4 {
			t.Errorf("counted %d bytes, %d to be precise", bytes, 2*size)
		}
	}
	c := dialHere(t, "tcp", 8000)
	wantSay(t, c, "bye", "bye")
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	if got := trafficOf(t, h, m)[0]; got.Total != 3 || got.Open != 2 {
		t.Errorf("after one was closed counted %d connections, %d of them open", got.Total, got.Open)
	}
}

// TestOnlyForwardsAreCounted: neither who listens here nor who connects to the guest
// itself is a forward's traffic.
func TestOnlyForwardsAreCounted(t *testing.T) {
	h := testHost(t)
	g := newEchoer(t, h, "guest")
	l, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8000})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	here := dialHere(t, "udp", 8000)
	io.WriteString(here, "before") // makes a connection that nobody rewrites
	m := g.mapping(forward.UDP, 8000)
	expose(t, h, m)
	io.WriteString(here, "after")
	buf := make([]byte, 16)
	for range 2 {
		l.SetReadDeadline(time.Now().Add(patience))
		if _, _, err := l.ReadFrom(buf); err != nil {
			t.Fatal(err)
		}
	}
	direct, err := net.Dial("udp", m.Guest.String())
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	wantSay(t, direct, "1", "guest1")
	if got := trafficOf(t, h, m)[0]; got != (forward.Traffic{}) {
		t.Errorf("counted %+v", got)
	}
	wantSay(t, dialHere(t, "udp", 8000), "1", "guest1")
	if got := trafficOf(t, h, m)[0]; got.Total != 1 {
		t.Errorf("counted %+v", got)
	}
}
