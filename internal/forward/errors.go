package forward

import (
	"errors"
	"fmt"
)

var (
	// ErrPortInUse is matched by every PortInUseError.
	ErrPortInUse = errors.New("port in use")
	// ErrInvalidPort is matched by every PortError.
	ErrInvalidPort = errors.New("invalid port")
	// ErrTransport is matched by every TransportError.
	ErrTransport = errors.New("transport cannot be used")
	// ErrMapped is wrapped by Table.Add when the host port belongs to another guest.
	ErrMapped = errors.New("host port is mapped to another guest")
	// ErrClosed is returned by a Manager that was closed.
	ErrClosed = errors.New("port forwarding is closed")

	errUnknownTransport = fmt.Errorf("it must be %s or %s", NFTables, SSHTunnel)
	errNoTable          = errors.New("there is no table to forward with")
	errNoTunnel         = errors.New("there is no guest channel to tunnel through")
	errLoopbackOnly     = errors.New("the guest's service listens on the guest's loopback only")
)

// PortError says that a port is out of range.
type PortError struct {
	Field string // guest_port or host_port
	Port  int
}

func (e *PortError) Error() string { return e.Field + " must be 1-65535" }

// Is makes every PortError match ErrInvalidPort.
func (e *PortError) Is(target error) bool { return target == ErrInvalidPort }

// PortInUseError says that a host port is taken.
type PortInUseError struct {
	Port int
	// Holder is who holds it, "nginx, pid 812"; empty if that cannot be known.
	Holder string
}

func (e *PortInUseError) Error() string {
	if e.Holder == "" {
		return fmt.Sprintf("host port %d is in use", e.Port)
	}
	return fmt.Sprintf("host port %d is in use by %s", e.Port, e.Holder)
}

// Is makes every PortInUseError match ErrPortInUse.
func (e *PortInUseError) Is(target error) bool { return target == ErrPortInUse }

// TransportError says why a transport that was asked for cannot be used.
type TransportError struct {
	Transport Transport
	Err       error
}

func (e *TransportError) Error() string {
	return fmt.Sprintf("transport %q cannot be used: %v", string(e.Transport), e.Err)
}

func (e *TransportError) Unwrap() error { return e.Err }

// Is makes every TransportError match ErrTransport.
func (e *TransportError) Is(target error) bool { return target == ErrTransport }
