package forward

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// seat is a host port that is held, and how it is served.
type seat struct {
	port    int
	release func()
	serve   func(*forward) service // owns the port from then on
}

// takeSeat takes a host port: from, or the next free one above it, or else any; with
// from 0 any. A strict request gets the port that it wants or none. It also
// returns who has the first port tried, if that was busy.
func (m *Manager) takeSeat(ctx context.Context, req Request, from int) (seat, *PortInUseError, error) {
	if from == 0 {
		s, err := m.reserve(req.protocol(), 0)
		return s, nil, err
	}
	var first *PortInUseError
	for port := from; port <= 65535; port++ {
		if ctx.Err() != nil {
			return seat{}, nil, ctx.Err()
		}
		s, err := m.reserve(req.protocol(), port)
		if !errors.Is(err, errBusy) {
			return s, first, err
		}
		if first == nil {
			first = &PortInUseError{Port: port, Protocol: req.protocol(), Holder: Holder(req.protocol(), port)}
		}
		if req.Strict {
			return seat{}, nil, first
		}
	}
	s, err := m.reserve(req.protocol(), 0)
	return s, first, err
}

// reserve takes one host port, 0 for any. The error is errBusy if it is taken.
func (m *Manager) reserve(protocol Protocol, port int) (seat, error) {
	if protocol == UDP {
		r, err := reserveDatagrams(port)
		if err != nil {
			return seat{}, err
		}
		return seat{port: r.port, release: r.close, serve: func(f *forward) service {
			return serveDatagrams(r, m.log, m.buffers, func(ctx context.Context) (net.Conn, error) { return m.dialDatagrams(ctx, f) })
		}}, nil
	}
	r, err := reserve(port)
	if err != nil {
		return seat{}, err
	}
	return seat{port: r.port, release: r.close, serve: func(f *forward) service {
		return serve(r, m.log, m.buffers, func(ctx context.Context) (Conn, error) { return m.dialStream(ctx, f) })
	}}, nil
}

// dialStream connects the service's own connections to the guest.
func (m *Manager) dialStream(ctx context.Context, f *forward) (Conn, error) {
	port := uint16(f.GuestPort)
	if !m.goesDirect(f) {
		if m.cfg.Tunnel == nil {
			return nil, errNoTunnel
		}
		return m.cfg.Tunnel.DialStream(ctx, port)
	}
	conn, err := m.cfg.Direct.DialStream(ctx, port)
	if errors.Is(err, unix.ECONNREFUSED) && f.asked == "" && m.cfg.Tunnel != nil {
		// Perhaps the service is on the guest's loopback and the guest has not said so yet.
		return m.cfg.Tunnel.DialStream(ctx, port)
	}
	return conn, err
}

// dialDatagrams begins a conversation of the service's own.
func (m *Manager) dialDatagrams(ctx context.Context, f *forward) (net.Conn, error) {
	switch {
	case m.goesDirect(f):
		return m.cfg.Direct.DialDatagrams(ctx, uint16(f.GuestPort))
	case m.cfg.Tunnel == nil:
		return nil, errNoTunnel
	}
	return m.cfg.Tunnel.DialDatagrams(ctx, uint16(f.GuestPort))
}

// goesDirect tells which way the service gets to the guest now.
func (m *Manager) goesDirect(f *forward) bool { return f.direct.Load() && m.cfg.Direct != nil }

func (m *Manager) address(guestPort int) netip.AddrPort {
	return netip.AddrPortFrom(m.cfg.Guest, uint16(guestPort))
}
