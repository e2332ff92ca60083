package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rtnetlink is a connection to the kernel's network configuration. It speaks just
// what a guest with one interface needs.
type rtnetlink struct {
	fd  int
	seq uint32
}

func openRTNetlink() (*rtnetlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open network configuration: %w", err)
	}
	return &rtnetlink{fd: fd}, nil
}

func (r *rtnetlink) close() { unix.Close(r.fd) }

// setUp sets the interface up or down.
func (r *rtnetlink) setUp(index int, up bool) error {
	var flags uint32
	if up {
		flags = unix.IFF_UP
	}
	if err := r.request(unix.RTM_NEWLINK, 0, linkMessage(index, flags, unix.IFF_UP)); err != nil {
		return fmt.Errorf("set interface up or down: %w", err)
	}
	return nil
}

// setMAC gives the interface another hardware address.
func (r *rtnetlink) setMAC(index int, mac net.HardwareAddr) error {
	b := appendAttribute(linkMessage(index, 0, 0), unix.IFLA_ADDRESS, mac)
	if err := r.request(unix.RTM_NEWLINK, 0, b); err != nil {
		return fmt.Errorf("set hardware address %s: %w", mac, err)
	}
	return nil
}

// linkMessage is about an interface, those of whose flags that are in change are to be as in flags.
func linkMessage(index int, flags, change uint32) []byte {
	b := make([]byte, 4, unix.SizeofIfInfomsg)
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, change)
}

// addAddress gives the interface an address that it may have already.
func (r *rtnetlink) addAddress(index int, addr netip.Prefix) error {
	err := r.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, addressMessage(index, addr))
	if err != nil {
		return fmt.Errorf("add address %s: %w", addr, err)
	}
	return nil
}

// deleteAddress takes an address away that may be gone already.
func (r *rtnetlink) deleteAddress(index int, addr netip.Prefix) error {
	err := r.request(unix.RTM_DELADDR, 0, addressMessage(index, addr))
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("delete address %s: %w", addr, err)
	}
	return nil
}

func addressMessage(index int, addr netip.Prefix) []byte {
	b := []byte{family(addr.Addr()), byte(addr.Bits()), 0, unix.RT_SCOPE_UNIVERSE}
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = appendAttribute(b, unix.IFA_LOCAL, addr.Addr().AsSlice())
	return appendAttribute(b, unix.IFA_ADDRESS, addr.Addr().AsSlice())
}

// setDefaultRoute makes gateway, which the interface reaches directly, the way to
// everywhere else.
func (r *rtnetlink) setDefaultRoute(index int, gateway netip.Addr) error {
	b := []byte{
		family(gateway), 0, 0, 0,
		unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST,
		0, 0, 0, 0,
	}
	b = appendAttribute(b, unix.RTA_GATEWAY, gateway.AsSlice())
	b = appendAttribute(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index)))
	if err := r.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, b); err != nil {
		return fmt.Errorf("set default route via %s: %w", gateway, err)
	}
	return nil
}

func family(addr netip.Addr) byte {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// appendAttribute appends an attribute; b must be a multiple of four bytes long.
func appendAttribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%unix.RTA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// request sends one message and returns what the kernel says to it.
func (r *rtnetlink) request(kind, flags uint16, body []byte) error {
	r.seq++
	msg := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	msg = binary.NativeEndian.AppendUint16(msg, kind)
	msg = binary.NativeEndian.AppendUint16(msg, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	msg = binary.NativeEndian.AppendUint32(msg, r.seq)
	msg = binary.NativeEndian.AppendUint32(msg, 0)
	if err := unix.Sendto(r.fd, append(msg, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(r.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		header := (*unix.NlMsghdr)(unsafe.Pointer(&buf[0]))
		if n < unix.SizeofNlMsghdr+4 || header.Type != unix.NLMSG_ERROR || header.Seq != r.seq {
			continue
		}
		if code := int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:])); code != 0 {
			return unix.Errno(-code)
		}
		return nil
	}
}
