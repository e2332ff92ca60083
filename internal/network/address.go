package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// interfacePrefix begins the name of every TAP; the guards match on it.
const interfacePrefix = "smol"

// slot is the index of a VM's interface, from which its addresses follow.
type slot int

// slotOf reads the slot out of an interface's name.
func slotOf(name string) (slot, bool) {
	digits, ok := strings.CutPrefix(name, interfacePrefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 31)
	if err != nil || strconv.FormatUint(n, 10) != digits {
		return 0, false
	}
	return slot(n), true
}

// addresses returns the two addresses of a slot's /31, host's and guest's, or false if
// the pool is too small.
func (s slot) addresses(pool netip.Prefix) (host, guest netip.Addr, ok bool) {
	if s < 0 || int64(s) >= int64(1)<<(31-pool.Bits()) {
		return netip.Addr{}, netip.Addr{}, false
	}
	base := pool.Masked().Addr().As4()
	first := binary.BigEndian.Uint32(base[:]) + 2*uint32(s)
	at := func(n uint32) netip.Addr {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], n)
		return netip.AddrFrom4(b)
	}
	return at(first), at(first + 1), true
}

// mac returns the guest's hardware address: locally administered, unicast.
func (s slot) mac() net.HardwareAddr { return s.hardwareAddr('s') }

// hostMAC returns that of the host's end. It is always the same: a guest that goes on from where
// it was suspended knows it.
func (s slot) hostMAC() net.HardwareAddr { return s.hardwareAddr('h') }

func (s slot) hardwareAddr(end byte) net.HardwareAddr {
	m := net.HardwareAddr{0x02, end, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(m[2:], uint32(s))
	return m
}

// prefix31 is the pair of addresses that addr belongs to, as an interface has it.
func prefix31(addr netip.Addr) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(31, 32)}
}
