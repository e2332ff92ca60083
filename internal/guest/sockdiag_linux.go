package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// What sock_diag(7) calls its messages and their parts, and how long they are.
const (
	sockDiagByFamily   = 20
	inetDiagV6Only     = 11
	inetDiagRequestLen = 56
	inetDiagMessageLen = 72
)

// diagSockets asks the kernel for the sockets of one protocol that are in one of the
// states, a bit mask. It fails with unix.ENOENT if the kernel cannot tell.
func diagSockets(protocol byte, states uint32) ([]socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("ask for sockets: %w", err)
	}
	defer unix.Close(fd)
	var sockets []socket
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		if err := unix.Sendto(fd, diagRequest(family, protocol, states), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return nil, fmt.Errorf("ask for sockets: %w", err)
		}
		if sockets, err = receiveSockets(fd, sockets); err != nil {
			return nil, fmt.Errorf("ask for sockets: %w", err)
		}
	}
	return sockets, nil
}

// diagRequest is the request for a dump.
func diagRequest(family, protocol byte, states uint32) []byte {
	const size = unix.SizeofNlMsghdr + inetDiagRequestLen
	msg := binary.NativeEndian.AppendUint32(make([]byte, 0, size), size)
	msg = binary.NativeEndian.AppendUint16(msg, sockDiagByFamily)
	msg = binary.NativeEndian.AppendUint16(msg, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	msg = append(msg, 0, 0, 0, 0, 0, 0, 0, 0) // sequence and port: nothing else is asked here
	msg = append(msg, family, protocol, 0, 0)
	msg = binary.NativeEndian.AppendUint32(msg, states)
	return msg[:size] // any address
}

// receiveSockets appends the answer to a request.
func receiveSockets(fd int, sockets []socket) ([]socket, error) {
	buf := make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var done bool
		if sockets, done, err = parseDiag(buf[:n], sockets); done || err != nil {
			return sockets, err
		}
	}
}

// parseDiag appends the sockets of one part of an answer, and tells whether it was the
// last part.
func parseDiag(b []byte, sockets []socket) (_ []socket, done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size, kind := int(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint16(b[4:])
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return nil, false, unix.EBADMSG
		}
		body := b[unix.SizeofNlMsghdr:size]
		b = b[min(align4(size), len(b)):]
		switch kind {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			if len(body) >= 4 {
				if code := int32(binary.NativeEndian.Uint32(body)); code < 0 {
					return nil, true, unix.Errno(-code)
				}
			}
			return sockets, true, nil
		case sockDiagByFamily:
			if s, ok := parseDiagMessage(body); ok {
				sockets = append(sockets, s)
			}
		}
	}
	return sockets, false, nil
}

func parseDiagMessage(b []byte) (s socket, ok bool) {
	if len(b) < inetDiagMessageLen {
		return s, false
	}
	const portAt, addressAt = 4, 8
	length := 4
	if b[0] == unix.AF_INET6 {
		length = 16
	}
	addr, _ := netip.AddrFromSlice(b[addressAt : addressAt+length])
	s.local = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[portAt:]))
	for b = b[inetDiagMessageLen:]; len(b) >= unix.SizeofRtAttr; {
		size, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if size < unix.SizeofRtAttr || size > len(b) {
			break
		}
		if kind == inetDiagV6Only && size > unix.SizeofRtAttr {
			s.v6only = b[unix.SizeofRtAttr] != 0
		}
		b = b[min(align4(size), len(b)):]
	}
	return s, true
}

func align4(n int) int { return (n + 3) &^ 3 }
