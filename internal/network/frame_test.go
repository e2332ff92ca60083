package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/network/nettest"
)

// frames is a socket in a namespace by which whole Ethernet frames are sent and seen.
type frames struct {
	file  *os.File
	index int
	mac   net.HardwareAddr
}

// framesOn opens one on an interface, until the test ends. A namespace of nil is the
// test's own.
func framesOn(t *testing.T, n *nettest.Namespace, link string) *frames {
	t.Helper()
	f := &frames{}
	open := func() error {
		ifc, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(wire(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: wire(unix.ETH_P_ALL), Ifindex: ifc.Index}); err != nil {
			unix.Close(fd)
			return err
		}
		*f = frames{os.NewFile(uintptr(fd), "frames"), ifc.Index, ifc.HardwareAddr}
		return nil
	}
	if n != nil {
		n.Do(open)
	} else if err := open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.file.Close() })
	return f
}

// wire is a number in network byte order.
func wire(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// send sends a packet of a protocol to a hardware address.
func (f *frames) send(to net.HardwareAddr, protocol uint16, packet []byte) error {
	frame := append(append([]byte{}, to...), f.mac...)
	frame = append(binary.BigEndian.AppendUint16(frame, protocol), packet...)
	_, err := f.file.Write(frame)
	return err
}

var errNotSeen = errors.New("no such frame was seen")

// await waits for a frame: its protocol and what is in it. Its own do not count.
func (f *frames) await(limit time.Duration, is func(protocol uint16, packet []byte) bool) error {
	f.file.SetReadDeadline(time.Now().Add(limit))
	buf := make([]byte, 2048)
	for {
		n, err := f.file.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errNotSeen
		}
		if err != nil {
			return fmt.Errorf("read frame: %w", err)
		}
		if n >= 14 && is(binary.BigEndian.Uint16(buf[12:]), buf[14:n]) {
			return nil
		}
	}
}

// tcpSYN is an IPv4 packet that opens a connection.
func tcpSYN(src, dst netip.AddrPort) []byte {
	p := make([]byte, 40)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(p[2:], 40)
	s, d := src.Addr().As4(), dst.Addr().As4()
	copy(p[12:], s[:])
	copy(p[16:], d[:])
	binary.BigEndian.PutUint16(p[10:], checksum(0, p[:20]))
	binary.BigEndian.PutUint16(p[20:], src.Port())
	binary.BigEndian.PutUint16(p[22:], dst.Port())
	binary.BigEndian.PutUint32(p[24:], 1000)
	p[32], p[33] = 5<<4, 2 // SYN
	binary.BigEndian.PutUint16(p[34:], 1024)
	binary.BigEndian.PutUint16(p[36:], checksum(unix.IPPROTO_TCP+20, p[12:]))
	return p
}

// checksum is the Internet's, of an even number of bytes.
func checksum(sum uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// arp is a request for an address, or, as a reply, a claim to have it.
func arp(operation uint16, from net.HardwareAddr, has, target netip.Addr) []byte {
	p := []byte{0, 1, 8, 0, 6, 4, 0, 0}
	binary.BigEndian.PutUint16(p[6:], operation)
	p = append(append(p, from...), has.AsSlice()...)
	return append(append(p, make([]byte, 6)...), target.AsSlice()...)
}

// ping6 is an IPv6 ping.
func ping6(src, dst netip.Addr) []byte {
	icmp := []byte{128, 0, 0, 0, 0, 7, 0, 1}
	p := make([]byte, 40, 48)
	p[0], p[6], p[7] = 0x60, unix.IPPROTO_ICMPV6, 64
	binary.BigEndian.PutUint16(p[4:], uint16(len(icmp)))
	copy(p[8:], src.AsSlice())
	copy(p[24:], dst.AsSlice())
	sum := checksum(uint32(unix.IPPROTO_ICMPV6+len(icmp)), append(p[8:40:40], icmp...))
	binary.BigEndian.PutUint16(icmp[2:], sum)
	return append(p, icmp...)
}
