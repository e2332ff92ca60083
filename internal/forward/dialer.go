package forward

import (
	"context"
	"net"
	"net/netip"
)

// Dialer is a way into the guest. Its methods may be called concurrently.
type Dialer interface {
	// DialStream connects to a TCP port.
	DialStream(ctx context.Context, guestPort uint16) (Conn, error)
	// DialDatagrams begins a conversation with a UDP port. Each Read and Write of the
	// connection is one datagram. A Write does not wait: what there is no room for
	// is lost, as datagrams are.
	DialDatagrams(ctx context.Context, guestPort uint16) (net.Conn, error)
}

// Conn is a connection whose two directions close one by one. If it has the method
// SetLinger of a *net.TCPConn, that is called with 0 before a Close that the other
// end should see as a reset. A Read that fails with anything but io.EOF means
// that the other end reset the connection, or is gone.
type Conn interface {
	net.Conn
	// CloseWrite tells the other end that no more will come.
	CloseWrite() error
}

// Direct returns a Dialer that connects to the guest's address.
func Direct(guest netip.Addr) Dialer { return direct{guest} }

type direct struct{ guest netip.Addr }

func (d direct) DialStream(ctx context.Context, guestPort uint16) (Conn, error) {
	conn, err := d.dial(ctx, "tcp", guestPort)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func (d direct) DialDatagrams(ctx context.Context, guestPort uint16) (net.Conn, error) {
	return d.dial(ctx, "udp", guestPort)
}

func (d direct) dial(ctx context.Context, network string, guestPort uint16) (net.Conn, error) {
	// Probes of a guest that is paused would end its connections.
	dialer := net.Dialer{KeepAlive: -1}
	return dialer.DialContext(ctx, network, netip.AddrPortFrom(d.guest, guestPort).String())
}
