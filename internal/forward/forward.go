// Package forward puts TCP and UDP ports of a guest on the host's localhost.
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

// The protocols.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
)

// Pair is a port of localhost and the guest's port that it leads to.
type Pair struct {
	HostPort  int      `json:"host_port"`
	GuestPort int      `json:"guest_port"`
	Protocol  Protocol `json:"proto"`
}

// Validate returns a *PortError, or an error that wraps ErrInvalidSpec, if no forward can
// be between the two.
func (p Pair) Validate() error {
	return Request{Protocol: p.Protocol, GuestPort: p.GuestPort, HostPort: p.HostPort, HostPortSet: true}.Validate()
}

// Forward describes a forward as it is now. The JSON names are a contract.
type Forward struct {
	Pair
	Transport Transport `json:"transport"`
	// Reason says why Transport is not NFTables, or what a forward that is Down
	// lacks. It is empty if there is nothing to say.
	Reason string `json:"reason"`
	Health Health `json:"health"`
	Traffic
}

// Health is what a client of a forward can expect.
type Health string

// The states of a forward.
const (
	Active  Health = "active"  // something in the guest listens
	Waiting Health = "waiting" // nothing in the guest listens yet
	Down    Health = "down"    // nothing gets through; the forward's Reason says why
)

// Traffic is what has gone through a forward since it was made.
type Traffic struct {
	Open  int   `json:"connections_open"`  // connections (UDP: conversations) now
	Total int64 `json:"connections_total"` // and since the beginning
	// Bytes each way. Those that the kernel forwards are counted with the headers
	// of their packets, others without.
	ToGuest   int64 `json:"bytes_to_guest"`
	FromGuest int64 `json:"bytes_from_guest"`
}

// Add adds up what went two ways.
func (t Traffic) Add(u Traffic) Traffic {
	return Traffic{t.Open + u.Open, t.Total + u.Total, t.ToGuest + u.ToGuest, t.FromGuest + u.FromGuest}
}
