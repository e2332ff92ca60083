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
	// ErrInvalidSpec is wrapped by errors about what no forward can be.
	ErrInvalidSpec = errors.New("invalid port specification")
	// ErrMapped is matched by every MappedError.
	ErrMapped = errors.New("host port is mapped to another guest")
	// ErrClosed is returned by a Manager that was closed.
	ErrClosed = errors.New("port forwarding is closed")

	// errBusy is what a reservation fails with when another socket has the port.
	errBusy = errors.New("the port is busy")

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
	Port     int
	Protocol Protocol
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

// MappedError says that the kernel sends a host port to another guest already.
type MappedError struct{ Mapping Mapping }

func (e *MappedError) Error() string {
	return fmt.Sprintf("host port %d/%s is mapped to another guest", e.Mapping.HostPort, e.Mapping.Protocol)
}

// Is makes every MappedError match ErrMapped.
func (e *MappedError) Is(target error) bool { return target == ErrMapped }
