package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
)

// client is a local TCP socket that is connected to a port of 127.0.0.1.
type client struct {
	family   uint8
	state    uint8
	id       []byte // what the kernel calls it: ports, addresses, interface and a cookie
	from, to netip.AddrPort
}

// Of linux/inet_diag.h. A socket's id begins at diagIDStart of a message about it.
const (
	tcpdiagGetsock = 18
	diagIDStart    = 4
	diagIDSize     = 48
)

// The states of TCP sockets, of the kernel's net/tcp_states.h, that matter here.
const (
	tcpSynSent  = 2
	tcpTimeWait = 6
	tcpClose    = 7
	tcpListen   = 10
	// tcpNewSynRecv is of a connection that a listener is about to have.
	tcpNewSynRecv = 12

	connectedStates = (1<<13 - 1) &^ (1<<tcpTimeWait | 1<<tcpClose | 1<<tcpListen | 1<<tcpNewSynRecv)
)

// abortClients ends the local TCP clients of mappings, with their connections. Client and
// guest learn it at once. It returns false if the kernel was built without the means to
// know and end them all.
func (h *Host) abortClients(mappings []forward.Mapping) (all bool, err error) {
	guests := make(map[uint16]netip.AddrPort)
	var port uint16 // the kernel looks for one only
	for _, m := range mappings {
		guests[m.HostPort], port = m.Guest, m.HostPort
	}
	if len(guests) > 1 {
		port = 0
	}
	if len(guests) == 0 {
		return true, nil
	}
	clients, err := h.clients(port)
	if errors.Is(err, errCannotList) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	all = true
	for _, c := range clients {
		guest, ours := guests[c.to.Port()]
		if !ours {
			continue
		}
		ended, err := h.abortClientOf(guest, c)
		if err != nil {
			return false, err
		}
		all = all && ended
	}
	return all, nil
}

// errCannotList says that the kernel was built without listing sockets.
var errCannotList = errors.New("the kernel cannot list sockets")

// clients lists the clients of a port of 127.0.0.1, or of any if it is 0. The kernel
// goes through its whole table of sockets, which takes a third of a millisecond
// and more; so it is asked in the old way, for IPv4's and for those of IPv6's that are used
// for IPv4 at once.
func (h *Host) clients(port uint16) ([]client, error) {
	request, err := h.sockets.request(unix.NETLINK_INET_DIAG, tcpdiagGetsock, unix.NLM_F_DUMP)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, errCannotList
	}
	if err != nil {
		return nil, err
	}
	id := make([]byte, diagIDSize)
	binary.BigEndian.PutUint16(id[2:], port)
	// This is a struct inet_diag_req, without the wish for details.
	b := append([]byte{unix.AF_INET, 0, 0, 0}, id...)
	b = binary.NativeEndian.AppendUint32(b, connectedStates)
	request.AddRawData(binary.NativeEndian.AppendUint32(b, 0))
	messages, err := request.Execute(unix.NETLINK_INET_DIAG, tcpdiagGetsock)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, errCannotList
	}
	if err != nil {
		return nil, fmt.Errorf("list clients: %w", err)
	}
	var found []client
	for _, m := range messages {
		if c, ok := decodeClient(m); ok && c.to.Addr() == localhost() {
			found = append(found, c)
		}
	}
	return found, nil
}

// abortClientOf ends a client if it is connected to a guest, and not to who
// listens on the port here. It returns false if it should be ended and cannot be.
func (h *Host) abortClientOf(guest netip.AddrPort, c client) (ended bool, err error) {
	f, err := h.findFlow(unix.IPPROTO_TCP, c.from, c.to)
	if err != nil {
		return false, err
	}
	// What is being opened at this moment may not be tracked yet; the kernel ends
	// it when it is.
	opening := f.answers == netip.AddrPort{} && c.state == tcpSynSent
	if f.answers != guest && !opening {
		return true, nil
	}
	request, err := h.sockets.request(unix.NETLINK_INET_DIAG, nl.SOCK_DESTROY, unix.NLM_F_ACK)
	if err != nil {
		return false, err
	}
	// This is a struct inet_diag_req_v2.
	request.AddRawData(append([]byte{c.family, unix.IPPROTO_TCP, 0, 0, 0, 0, 0, 0}, c.id...))
	_, err = request.Execute(unix.NETLINK_INET_DIAG, 0)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	case err != nil && !errors.Is(err, unix.ENOENT): // or it went by itself
		return false, fmt.Errorf("end client %s: %w", c.from, err)
	case opening:
		return true, nil
	}
	return true, h.endFlow(f)
}

// decodeClient reads a struct inet_diag_msg.
func decodeClient(message []byte) (client, bool) {
	if len(message) < diagIDStart+diagIDSize {
		return client{}, false
	}
	c := client{family: message[0], state: message[1], id: message[diagIDStart : diagIDStart+diagIDSize]}
	src, dst := c.id[4:20], c.id[20:36]
	addr := func(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)).Unmap() }
	if c.family == unix.AF_INET {
		addr = func(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
	}
	c.from = netip.AddrPortFrom(addr(src), binary.BigEndian.Uint16(c.id))
	c.to = netip.AddrPortFrom(addr(dst), binary.BigEndian.Uint16(c.id[2:]))
	return c, true
}
