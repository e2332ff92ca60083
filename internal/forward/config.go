package forward

import (
	"log/slog"
	"net/netip"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// Config is what a Manager works with.
type Config struct {
	VM  string       // for the log
	Log *slog.Logger // nil: silence
	// Table is the kernel's table. Without one all forwards are tunnels, and
	// TableUnavailable says why.
	Table            Table
	TableUnavailable error
	// Firewall tells when the proof has to be made again, and why it failed. It may be nil.
	Firewall Firewall
	// Guest is the guest's address, needed with a Table.
	Guest netip.Addr
	// Direct connects to services on the guest's address; nil means Direct(Guest).
	Direct Dialer
	// Tunnel connects to services on the guest's loopback or address, over the
	// guest channel.
	Tunnel Dialer
	// Adopted tells that the guest had another Manager, in a process that died. Its forwards
	// may be in the Table still, and serve their clients: what is exposed again takes
	// them over. The Table is taken to work, until the first proof shows otherwise.
	Adopted bool
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
