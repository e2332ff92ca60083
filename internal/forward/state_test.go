package forward_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/guestapi"
)

func loopbackOnly(port uint16) map[uint16]guestapi.Scope {
	return map[uint16]guestapi.Scope{port: guestapi.ScopeLoopback}
}

func onNetwork(port uint16) map[uint16]guestapi.Scope {
	return map[uint16]guestapi.Scope{port: guestapi.ScopeNetwork}
}

func TestHealth(t *testing.T) {
	m := newMachine(t)
	auto := m.expose(forward.Request{GuestPort: 80, HostPort: freePort(t)})
	forced := m.expose(forward.Request{GuestPort: 80, HostPort: freePort(t), Transport: forward.NFTables})
	tunnel := m.expose(forward.Request{GuestPort: 80, HostPort: freePort(t), Transport: forward.SSHTunnel})
	type state struct {
		transport forward.Transport
		health    forward.Health
		reason    string
	}
	check := func(when string, want map[forward.Pair]state) {
		t.Helper()
		for _, f := range m.Forwards() {
			if w := want[f.Pair]; f.Transport != w.transport || f.Health != w.health || !strings.Contains(f.Reason, w.reason) || (w.reason == "") != (f.Reason == "") {
				t.Errorf("%s: %+v, want %+v", when, f, w)
			}
		}
	}
	nft, ssh := forward.NFTables, forward.SSHTunnel
	check("with nothing known", map[forward.Pair]state{
		auto.Pair: {nft, forward.Waiting, ""}, forced.Pair: {nft, forward.Waiting, ""}, tunnel.Pair: {ssh, forward.Waiting, "asked for"},
	})
	m.SetListeners(listeners(onNetwork(80)))
	served := map[forward.Pair]state{
		auto.Pair: {nft, forward.Active, ""}, forced.Pair: {nft, forward.Active, ""}, tunnel.Pair: {ssh, forward.Active, "asked for"},
	}
	check("with a server", served)
	m.SetListeners(listeners(loopbackOnly(80)))
	check("with a server on loopback", map[forward.Pair]state{
		auto.Pair: {ssh, forward.Active, "loopback"}, forced.Pair: {nft, forward.Down, "loopback"}, tunnel.Pair: {ssh, forward.Active, "asked for"},
	})
	m.SetTunnel(errBroken)
	check("without a tunnel", map[forward.Pair]state{
		auto.Pair: {ssh, forward.Down, "broken"}, forced.Pair: {nft, forward.Down, "loopback"}, tunnel.Pair: {ssh, forward.Down, "broken"},
	})
	m.SetTunnel(nil)
	m.SetListeners(listeners(onNetwork(80)))
	check("with all back", served)
	m.SetListeners(guestapi.Listeners{UDP: onNetwork(80)})
	check("with a server of another protocol", map[forward.Pair]state{
		auto.Pair: {nft, forward.Waiting, ""}, forced.Pair: {nft, forward.Waiting, ""}, tunnel.Pair: {ssh, forward.Waiting, "asked for"},
	})
}

// firewall says what a test wants it to.
type firewall struct {
	changed chan func()
	who     string
}

func (f *firewall) Watch(changed func()) (func(), error) {
	f.changed <- changed
	return func() {}, nil
}

func (f *firewall) Explain(context.Context, forward.Mapping) string { return f.who }

// The transport follows what the host's firewall does, and the reason names it.
func TestFirewallComesAndGoes(t *testing.T) {
	wall := &firewall{changed: make(chan func(), 1), who: "table ip other drops it"}
	m := newMachine(t, func(c *forward.Config) { c.Firewall = wall })
	m.serve("0.0.0.0:80", "page")
	f := m.expose(forward.Request{GuestPort: 80})
	forced := m.expose(forward.Request{GuestPort: 80, HostPort: freePort(t), Transport: forward.NFTables})
	changed := <-wall.changed
	wantAnswer(t, "127.0.0.1", f.HostPort, "page")

	run(t, "nft", "add table ip other; add chain ip other output { type filter hook output priority 0; }; add rule ip other output ip daddr 198.18.0.0/16 reject")
	changed()
	wait(t, "the tunnel", func() bool { return m.forward(f.Pair).Transport == forward.SSHTunnel })
	wantAnswer(t, "127.0.0.1", f.HostPort, "page")
	for _, got := range m.Forwards() {
		switch {
		case got.Reason == "" || !strings.Contains(got.Reason, wall.who):
			t.Errorf("no reason: %+v", got)
		case got.Pair == f.Pair && got.Transport != forward.SSHTunnel, got.Pair == forced.Pair && (got.Transport != forward.NFTables || got.Health != forward.Down):
			t.Errorf("while it rejects: %+v", got)
		}
	}
	if err := m.Prove(t.Context()); err == nil {
		t.Error("the proof is out of date")
	}

	run(t, "nft", "delete table ip other")
	changed()
	for _, pair := range []forward.Pair{f.Pair, forced.Pair} {
		wait(t, "the kernel's forwarding", func() bool { got := m.forward(pair); return got.Transport == forward.NFTables && got.Reason == "" })
	}
	wantAnswer(t, "127.0.0.1", f.HostPort, "page")
	if n := m.log.Count("works no longer") + m.log.Count("works again"); n != 2 {
		t.Errorf("%d lines logged: %s", n, m.log)
	}
}

func TestTraffic(t *testing.T) {
	for _, transport := range []forward.Transport{forward.NFTables, forward.SSHTunnel} {
		t.Run(string(transport), func(t *testing.T) {
			m := newMachine(t)
			l := m.Listen("0.0.0.0:80")
			f := m.expose(forward.Request{GuestPort: 80, Transport: transport})
			if got := m.Forwards()[0].Traffic; got != (forward.Traffic{}) {
				t.Errorf("before anything: %+v", got)
			}
			const up, down = 300_000, 100_000
			for i, host := range both() {
				c, err := net.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(f.HostPort)))
				must(t, err)
				defer c.Close()
				g, err := l.Accept()
				must(t, err)
				defer g.Close()
				transfer(t, c, g, up)
				transfer(t, g, c, down)
				// Headers come on top of what the kernel carries.
				wait(t, "counts", func() bool {
					n := int64(i + 1)
					got := m.Forwards()[0].Traffic
					return got.Open == i+1 && got.Total == n && got.ToGuest >= n*up && got.ToGuest < n*up*3/2 &&
						got.FromGuest >= n*down && got.FromGuest < n*down*3/2
				})
			}
		})
	}
}

// transfer sends n bytes.
func transfer(t *testing.T, from, to net.Conn, n int64) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(make([]byte, n))
		sent <- err
	}()
	_, err := io.CopyN(io.Discard, to, n)
	must(t, errors.Join(err, <-sent))
}

// Counts survive a change of transport.
func TestTrafficAcrossTransports(t *testing.T) {
	m := newMachine(t)
	m.serve("0.0.0.0:80", "page")
	f := m.expose(forward.Request{GuestPort: 80})
	wantAnswer(t, "127.0.0.1", f.HostPort, "page")
	m.SetListeners(listeners(loopbackOnly(80)))
	wantAnswer(t, "127.0.0.1", f.HostPort, "page")
	m.SetListeners(listeners(onNetwork(80)))
	wantAnswer(t, "127.0.0.1", f.HostPort, "page")
	wait(t, "three connections", func() bool { return m.Forwards()[0].Total == 3 })
}

func TestEvents(t *testing.T) {
	m := newMachine(t)
	first := m.expose(forward.Request{GuestPort: 80})
	events := make(chan forward.Event)
	go func() {
		defer close(events)
		for e := range m.Events(t.Context()) {
			events <- e
		}
	}()
	next := func(kind forward.EventKind, f forward.Forward, transport forward.Transport, health forward.Health) {
		t.Helper()
		if e := <-events; e.Kind != kind || e.Forward.Pair != f.Pair || e.Forward.Transport != transport || e.Forward.Health != health {
			t.Errorf("got %+v, want %s of %+v as %s, %s", e, kind, f.Pair, transport, health)
		}
	}
	next(forward.Exposed, first, forward.NFTables, forward.Waiting)
	m.SetListeners(listeners(onNetwork(80)))
	next(forward.Changed, first, forward.NFTables, forward.Active)
	m.SetListeners(listeners(onNetwork(80))) // no news
	second := m.expose(forward.Request{GuestPort: 81})
	next(forward.Exposed, second, forward.NFTables, forward.Waiting)
	m.SetListeners(listeners(loopbackOnly(80)))
	next(forward.Changed, first, forward.SSHTunnel, forward.Active)
	m.unexpose(second)
	next(forward.Unexposed, second, forward.NFTables, forward.Waiting)
	must(t, m.Close())
	next(forward.Unexposed, first, forward.SSHTunnel, forward.Active)
	if e, more := <-events; more {
		t.Errorf("after the end came %+v", e)
	}
	for e := range m.Events(t.Context()) {
		t.Errorf("a closed manager tells of %+v", e)
	}
}

// Whoever is slow hears the newest only, and holds nobody up.
func TestEventsOfSlowReader(t *testing.T) {
	m := newMachine(t)
	m.expose(forward.Request{GuestPort: 80})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	step := 0
	for e := range m.Events(ctx) {
		step++
		switch step {
		case 1: // while this one thinks, much happens
			for range 50 {
				m.SetListeners(listeners(loopbackOnly(80)))
				m.SetListeners(listeners(onNetwork(80)))
			}
			gone := m.expose(forward.Request{GuestPort: 81})
			m.SetListeners(listeners(nil))
			m.unexpose(gone)
		case 2:
			if e.Kind != forward.Changed || e.Forward.GuestPort != 80 || e.Forward.Health != forward.Waiting {
				t.Errorf("got %+v", e)
			}
		case 3:
			if e.Kind != forward.Unexposed || e.Forward.GuestPort != 81 {
				t.Errorf("got %+v", e)
			}
			cancel()
		default:
			t.Errorf("event %d: %+v", step, e)
		}
	}
	if step != 3 {
		t.Errorf("%d events", step)
	}
}
