package forward

import (
	"cmp"
	"fmt"
)

// Request asks for a forward.
type Request struct {
	Protocol  Protocol `json:"proto,omitempty"` // empty: TCP
	GuestPort int      `json:"guest_port"`
	// HostPort is the port on the host's localhost; 0 without HostPortSet means any.
	HostPort    int  `json:"host_port,omitempty"`
	HostPortSet bool `json:"host_port_set,omitempty"`
	// Strict makes a busy HostPort an error. Without it another port is taken.
	Strict    bool      `json:"strict,omitempty"`
	Transport Transport `json:"transport,omitempty"`
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
	switch r.Protocol {
	case "", TCP, UDP:
	default:
		return fmt.Errorf("%w: protocol must be %s or %s, not %q", ErrInvalidSpec, TCP, UDP, r.Protocol)
	}
	switch r.Transport {
	case "", NFTables, SSHTunnel:
		return nil
	}
	return &TransportError{Transport: r.Transport, Err: errUnknownTransport}
}

func (r Request) wantsHostPort() bool { return r.HostPortSet || r.HostPort != 0 }

func (r Request) protocol() Protocol { return cmp.Or(r.Protocol, TCP) }

func (r Request) target() target { return target{r.protocol(), uint16(r.GuestPort)} }

func validPort(port int) bool { return 1 <= port && port <= 65535 }
