package forward

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// anyPortAttempts is how often the kernel is asked for a port that is free on
// both of localhost's addresses.
const anyPortAttempts = 64

// reservation is a port of localhost, taken by listening on it.
type reservation struct {
	port      int
	listeners []*net.TCPListener // 127.0.0.1, and ::1 if the host has it
}

// reserve takes a port, 0 for any. It returns a *PortInUseError if something
// else has it, and an error that wraps fs.ErrPermission if this process may not.
func reserve(port int) (*reservation, error) {
	if port != 0 {
		return reservePort(port)
	}
	// Ports that are free on 127.0.0.1 alone are held until the end, or the kernel might
	// offer them again.
	var rejected []*net.TCPListener
	defer func() {
		for _, l := range rejected {
			l.Close()
		}
	}()
	var last error
	for range anyPortAttempts {
		v4, err := listen("tcp4", "127.0.0.1", 0)
		if err != nil {
			return nil, fmt.Errorf("reserve any port: %w", err)
		}
		r, err := reserveV6(v4)
		if err == nil {
			return r, nil
		}
		rejected = append(rejected, v4)
		last = err
	}
	return nil, fmt.Errorf("reserve any port: %w", last)
}

func reservePort(port int) (*reservation, error) {
	v4, err := listen("tcp4", "127.0.0.1", port)
	if err != nil {
		return nil, explainBind(port, err)
	}
	r, err := reserveV6(v4)
	if err != nil {
		v4.Close() // first, or it would be found to be the holder
		return nil, explainBind(port, err)
	}
	return r, nil
}

// reserveV6 completes a reservation that has its IPv4 half.
func reserveV6(v4 *net.TCPListener) (*reservation, error) {
	port := v4.Addr().(*net.TCPAddr).Port
	r := &reservation{port: port, listeners: []*net.TCPListener{v4}}
	v6, err := listen("tcp6", "::1", port)
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EAFNOSUPPORT):
		return r, nil // this host has no ::1, so nobody can be there
	case err != nil:
		return nil, err
	}
	r.listeners = append(r.listeners, v6)
	return r, nil
}

// explainBind turns the kernel's refusal into an error that users understand.
func explainBind(port int, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return &PortInUseError{Port: port, Holder: holder(port)}
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("reserve host port %d: %w: this user may not use so low a port; take one from 1024 on",
			port, fs.ErrPermission)
	}
	return fmt.Errorf("reserve host port %d: %w", port, err)
}

// close lets the port go.
func (r *reservation) close() {
	for _, l := range r.listeners {
		l.Close()
	}
}

// listen binds without SO_REUSEADDR, so that a port which any other socket has
// counts as busy, even one bound and not listening. Connections of ours that
// linger in the kernel after their end would count too; with nothing else on
// the port they are no hindrance.
func listen(network, host string, port int) (*net.TCPListener, error) {
	l, err := listenReuse(network, host, port, false)
	if !errors.Is(err, unix.EADDRINUSE) {
		return l, err
	}
	sockets, listErr := localhostSockets(port)
	if listErr != nil {
		return nil, err
	}
	lingering := false
	for _, s := range sockets {
		if network == "tcp6" && s.local.Addr().Is4() {
			continue // our own other half
		}
		if !s.state.over() {
			return nil, err
		}
		lingering = true
	}
	if !lingering {
		return nil, err
	}
	return listenReuse(network, host, port, true)
}

func listenReuse(network, host string, port int, reuse bool) (*net.TCPListener, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return setReuse(c, reuse)
	}}
	l, err := config.Listen(context.Background(), network, net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	tcp := l.(*net.TCPListener)
	raw, err := tcp.SyscallConn()
	if err == nil {
		// Accepted connections inherit this, and what lingers of them then lets
		// the port be bound again. It opens the port to nobody: a listening
		// socket shares with no other.
		err = setReuse(raw, true)
	}
	if err != nil {
		tcp.Close()
		return nil, err
	}
	return tcp, nil
}

func setReuse(c syscall.RawConn, reuse bool) error {
	value := 0
	if reuse {
		value = 1
	}
	var err error
	if ctrlErr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, value)
	}); ctrlErr != nil {
		return ctrlErr
	}
	return err
}

// PortAvailable tells whether port of localhost, 127.0.0.1 and ::1, could be
// reserved now.
func PortAvailable(port int) bool {
	if !validPort(port) {
		return false
	}
	r, err := reserve(port)
	if err != nil {
		return false
	}
	r.close()
	return true
}
