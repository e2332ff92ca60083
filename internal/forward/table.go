package forward

import (
	"context"
	"net/netip"
)

// Mapping is one element of a Table: what is sent to 127.0.0.1:HostPort goes to Guest.
type Mapping struct {
	Protocol Protocol
	HostPort uint16
	Guest    netip.AddrPort
}

// Table is the kernel's table of forwards, shared by all processes of the host.
// Its methods may be called concurrently. Each does its work for all mappings in
// one transaction: all are done, or none.
type Table interface {
	// Add puts mappings in and keeps them in, should others remove them. The error
	// is a *MappedError if a host port is mapped to another guest; the same mapping
	// again is no error.
	Add(ctx context.Context, mappings ...Mapping) error
	// Lookup returns where a host port is mapped to, or the zero AddrPort.
	Lookup(ctx context.Context, protocol Protocol, hostPort uint16) (netip.AddrPort, error)
	// Delete takes mappings out, if they are there. Connections made through them
	// live on.
	Delete(ctx context.Context, mappings ...Mapping) error
	// EndFlows ends the connections made through mappings that were deleted. TCP clients
	// that wait are told at once, by ECONNABORTED; where the kernel cannot do that,
	// they are told by ECONNRESET when they next send. The guest's servers see a
	// reset, and nothing more reaches the guest.
	EndFlows(ctx context.Context, mappings ...Mapping) error
	// Traffic returns what has gone through each mapping since it was added; of one
	// that is not there, nothing.
	Traffic(ctx context.Context, mappings ...Mapping) ([]Traffic, error)
}

// Firewall is what else the host does with packets.
type Firewall interface {
	// Watch calls changed, never twice at once, soon after somebody else changed the
	// host's packet filter or the way to a guest, so that what was found to work may
	// work no longer, or the other way round. It calls until stop is called, which
	// waits for the last call.
	Watch(changed func()) (stop func(), err error)
	// Explain makes a connection through a TCP mapping that does not work and says
	// who stops it, such as "table inet filter, chain output drops it: policy drop".
	// It is empty if that cannot be found out.
	Explain(ctx context.Context, m Mapping) string
}
