package guest

import (
	"errors"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// socket is one that others may send to.
type socket struct {
	local  netip.AddrPort
	v6only bool // IPv4 does not reach it. Text does not tell.
}

// scope tells from where the socket can be reached: the guest's network address is one
// of IPv4.
func (s socket) scope() guestapi.Scope {
	if s.local.Addr().Unmap().IsLoopback() || s.v6only {
		return guestapi.ScopeLoopback
	}
	return guestapi.ScopeNetwork
}

// answersAt reports whether the socket gets what is sent to addr.
func (s socket) answersAt(addr netip.Addr) bool {
	local := s.local.Addr().Unmap()
	switch {
	case local == addr:
		return true
	case local == netip.IPv6Unspecified():
		return addr.Is6() || !s.v6only
	}
	return local.IsUnspecified() && addr.Is4()
}

// socketTable lists the kernel's sockets. Its methods may be called concurrently.
type socketTable struct {
	proc string // where to read them, if the kernel does not answer questions

	mu   sync.Mutex
	mute bool // the kernel does not
}

// listeners lists the TCP sockets that listen.
func (t *socketTable) listeners() ([]socket, error) {
	const listen = 10 // TCP_LISTEN
	return t.list(unix.IPPROTO_TCP, 1<<listen, "tcp", procListen)
}

// receivers lists the UDP sockets that take datagrams from anybody.
func (t *socketTable) receivers() ([]socket, error) {
	const closed = 7 // TCP_CLOSE, which of UDP means: not connected
	return t.list(unix.IPPROTO_UDP, 1<<closed, "udp", procClosed)
}

func (t *socketTable) list(protocol byte, states uint32, name, state string) ([]socket, error) {
	t.mu.Lock()
	mute := t.mute
	t.mu.Unlock()
	if !mute {
		sockets, err := diagSockets(protocol, states)
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EPROTONOSUPPORT) {
			return sockets, err
		}
		// Asked again it would look for a module again, which takes long.
		t.mu.Lock()
		t.mute = true
		t.mu.Unlock()
	}
	return procSockets(t.proc, name, state)
}

// report is what the host is told.
func (t *socketTable) report() (guestapi.Listeners, error) {
	tcp, tcpErr := t.listeners()
	udp, udpErr := t.receivers()
	return guestapi.Listeners{TCP: scopes(tcp), UDP: scopes(udp)}, errors.Join(tcpErr, udpErr)
}

// scopes is the widest scope of each port.
func scopes(sockets []socket) map[uint16]guestapi.Scope {
	ports := make(map[uint16]guestapi.Scope)
	for _, s := range sockets {
		port := s.local.Port()
		if s.local.Addr().Unmap().IsMulticast() || ports[port] == guestapi.ScopeNetwork {
			continue
		}
		ports[port] = s.scope()
	}
	return ports
}
