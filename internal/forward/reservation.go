package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// anyPortAttempts is how often the kernel is asked for a port that is free on
	// both of localhost's addresses.
	anyPortAttempts = 64
	// receiveBuffer is how many bytes of datagrams the kernel keeps for us at most,
	// if it allows that many. It costs nothing while there are none.
	receiveBuffer = 1 << 20
)

// localPort is a port of localhost, taken by binding sockets to it.
type localPort[S io.Closer] struct {
	port    int
	sockets []S // 127.0.0.1, and ::1 if the host has it
}

// A reservation listens for connections.
type reservation = localPort[*net.TCPListener]

// A datagramReservation is bound for datagrams.
type datagramReservation = localPort[*net.UDPConn]

// close lets the port go.
func (p *localPort[S]) close() {
	for _, s := range p.sockets {
		s.Close()
	}
}

// reserve takes a TCP port, 0 for any. It returns errBusy if something else has it,
// and an error that wraps fs.ErrPermission if this process may not. Who has it is left
// for the caller to ask: holder takes far longer than this.
func reserve(port int) (*reservation, error) {
	return take(port, listen, func(l *net.TCPListener) int { return l.Addr().(*net.TCPAddr).Port })
}

// reserveDatagrams is reserve for a UDP port.
func reserveDatagrams(port int) (*datagramReservation, error) {
	return take(port, bindDatagrams, func(c *net.UDPConn) int { return c.LocalAddr().(*net.UDPAddr).Port })
}

// take binds a port with bind, on both of localhost's addresses; numberOf tells
// which one a socket got.
func take[S io.Closer](port int, bind func(host string, port int) (S, error), numberOf func(S) int) (*localPort[S], error) {
	// Ports that are free on 127.0.0.1 alone are held until the end, or the kernel might
	// offer them again.
	var rejected localPort[S]
	defer rejected.close()
	var refusal error
	for range anyPortAttempts {
		v4, err := bind("127.0.0.1", port)
		if err != nil {
			return nil, explainBind(port, err)
		}
		taken := &localPort[S]{port: numberOf(v4), sockets: []S{v4}}
		v6, err := bind("::1", taken.port)
		switch {
		case err == nil:
			taken.sockets = append(taken.sockets, v6)
			return taken, nil
		case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EAFNOSUPPORT):
			return taken, nil // this host has no ::1, so nobody can be there
		case port != 0:
			taken.close()
			return nil, explainBind(port, err)
		}
		rejected.sockets = append(rejected.sockets, v4)
		refusal = err
	}
	return nil, fmt.Errorf("reserve any port: %w", refusal)
}

// explainBind turns the kernel's refusal into an error that users understand.
func explainBind(port int, err error) error {
	switch {
	case port == 0:
		return fmt.Errorf("reserve any port: %w", err)
	case errors.Is(err, unix.EADDRINUSE):
		return errBusy
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("reserve host port %d: %w: this user may not use so low a port; take one from 1024 on",
			port, fs.ErrPermission)
	}
	return fmt.Errorf("reserve host port %d: %w", port, err)
}

// bindDatagrams binds without SO_REUSEADDR, so that a port which any other socket
// has counts as busy.
func bindDatagrams(host string, port int) (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(host), Port: port})
	if err != nil {
		return nil, err
	}
	if err := conn.SetReadBuffer(receiveBuffer); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// listen binds without SO_REUSEADDR, so that a port which any other socket has
// counts as busy, even one bound and not listening. Connections of ours that
// linger in the kernel after their end would count too; with nothing else on
// the port they are no hindrance.
func listen(host string, port int) (*net.TCPListener, error) {
	l, err := listenReuse(host, port, false)
	// All sockets of the host have to be looked at, which takes a while: that is
	// the last question.
	if errors.Is(err, unix.EADDRINUSE) && canShare(host, port) && onlyLingering(host, port) {
		return listenReuse(host, port, true)
	}
	return l, err
}

// canShare tells whether all that has a port would let it be bound again: nothing
// listens on it, for one. It disturbs nobody, as it does not listen itself.
func canShare(host string, port int) bool {
	family, address := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port})
	if host == "::1" {
		family, address = unix.AF_INET6, &unix.SockaddrInet6{Addr: netip.IPv6Loopback().As16(), Port: port}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) == nil && unix.Bind(fd, address) == nil
}

// onlyLingering tells whether all that has a port is what remains of connections.
func onlyLingering(host string, port int) bool {
	sockets, err := localhostSockets(TCP, port)
	if err != nil {
		return false
	}
	lingering := false
	for _, s := range sockets {
		if host == "::1" && s.local.Addr().Is4() {
			continue // our own other half
		}
		if !s.state.over() {
			return false
		}
		lingering = true
	}
	return lingering
}

func listenReuse(host string, port int, reuse bool) (*net.TCPListener, error) {
	config := net.ListenConfig{
		Control: func(_, _ string, c syscall.RawConn) error { return setReuse(c, reuse) },
		// The other end is on this host: the kernel says when it is gone.
		KeepAlive: -1,
	}
	// A socket of several paths is another kind of socket to whoever lists or ends them.
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
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

// PortAvailable tells whether a TCP port of localhost, 127.0.0.1 and ::1, could be
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
