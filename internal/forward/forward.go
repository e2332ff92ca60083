// Package forward puts TCP ports of a guest on the host's localhost.
//
// A forward is one reservation and, when the kernel can do the work, one
// element in a table. The reservation is a real listener on 127.0.0.1 and [::1],
// held from expose to unexpose, so the port is nobody else's in between. The
// element sends connections to 127.0.0.1 straight to the guest, before they
// reach the listener; what the kernel does not take, the listener carries
// itself: [::1], ports that the guest serves on its own loopback only, hosts
// without nftables, and the time after someone flushed the firewall. Adding or
// removing the element moves a forward from one transport to the other with no
// moment in which nobody answers.
//
// The package knows no VM. It is given the guest's address, ways to dial into
// the guest and a table.
package forward

import (
	"context"
	"log/slog"
	"net"
	"net/netip"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// Transport is how connections to 127.0.0.1 get to the guest.
type Transport string

// The transports, from fast to slow. The empty Transport in a request asks for the
// fastest that works.
const (
	NFTables  Transport = "nftables"   // rewritten by the kernel
	SSHTunnel Transport = "ssh_tunnel" // accepted here, carried by the guest channel
)

// Protocol is a transport protocol in the sense of the Internet.
type Protocol string

// TCP is the one protocol that is forwarded.
const TCP Protocol = "tcp"

// Request asks for a forward.
type Request struct {
	GuestPort int
	// HostPort is the port on the host's localhost; 0 without HostPortSet means any.
	HostPort    int
	HostPortSet bool
	// Strict makes a busy HostPort an error. Without it another port is taken.
	Strict    bool
	Transport Transport
}

// Validate returns a *PortError or an error that names the transport if the
// request can never be granted.
func (r Request) Validate() error {
	if !validPort(r.GuestPort) {
		return &PortError{Field: "guest_port", Port: r.GuestPort}
	}
	if r.wantsHostPort() && !validPort(r.HostPort) {
		return &PortError{Field: "host_port", Port: r.HostPort}
	}
	switch r.Transport {
	case "", NFTables, SSHTunnel:
		return nil
	}
	return &TransportError{Transport: r.Transport, Err: errUnknownTransport}
}

func (r Request) wantsHostPort() bool { return r.HostPortSet || r.HostPort != 0 }

func validPort(port int) bool { return 1 <= port && port <= 65535 }

// Forward describes a forward as it is now.
type Forward struct {
	HostPort  int
	GuestPort int
	Protocol  Protocol
	Transport Transport
	// Reason says why Transport is not NFTables; empty if it is.
	Reason string
}

// Mapping is one element of a Table: connections to 127.0.0.1:HostPort go to Guest.
type Mapping struct {
	Protocol Protocol
	HostPort uint16
	Guest    netip.AddrPort
}

// Table is the kernel's table of forwards, shared by all processes of the host.
// Its methods may be called concurrently.
type Table interface {
	// Add puts a mapping in. It returns an error that wraps ErrMapped if the host
	// port is mapped to another guest; the same mapping again is no error.
	Add(ctx context.Context, m Mapping) error
	// Lookup returns where a host port is mapped to, or the zero AddrPort.
	Lookup(ctx context.Context, protocol Protocol, hostPort uint16) (netip.AddrPort, error)
	// Delete takes a mapping out, if it is there. Connections made through it live on.
	Delete(ctx context.Context, m Mapping) error
	// EndFlows makes the kernel forget the connections made through mappings, so
	// that nothing more of them reaches the guest. Many mappings cost no more than one.
	EndFlows(ctx context.Context, mappings ...Mapping) error
}

// Conn is a connection whose two directions close one by one. If it has the method
// SetLinger of a *net.TCPConn, that is called with 0 before a Close that the other
// end should see as a reset.
type Conn interface {
	net.Conn
	// CloseWrite tells the other end that no more will come.
	CloseWrite() error
}

// Dialer connects to a TCP port of the guest.
type Dialer func(ctx context.Context, guestPort uint16) (Conn, error)

// Direct returns a Dialer that connects to the guest's address.
func Direct(guest netip.Addr) Dialer {
	return func(ctx context.Context, guestPort uint16) (Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(guest, guestPort).String())
		if err != nil {
			return nil, err
		}
		return conn.(*net.TCPConn), nil
	}
}

// Config is what a Manager works with.
type Config struct {
	VM  string       // for the log
	Log *slog.Logger // nil: silence
	// Table is the kernel's table. Without one all forwards are tunnels, and
	// TableUnavailable says why.
	Table            Table
	TableUnavailable error
	// Guest is the guest's address, needed with a Table.
	Guest netip.Addr
	// Direct connects to services on the guest's address; nil means Direct(Guest).
	Direct Dialer
	// Tunnel connects to services on the guest's loopback or address, over the
	// guest channel.
	Tunnel Dialer
	// Probe is what proves that the Table works. The zero Probe is the guest's
	// own SSH server.
	Probe Probe
}

// Probe is a service of the guest that speaks first.
type Probe struct {
	Port   uint16
	Banner string // what it says begins with this
}

func (p Probe) orDefault() Probe {
	if p == (Probe{}) {
		return Probe{Port: guestapi.SSHPort, Banner: "SSH-2.0-"}
	}
	return p
}
