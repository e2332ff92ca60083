package network

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// flow is a connection as the kernel tracks it.
type flow struct {
	protocol uint8
	from, to netip.AddrPort // as the one who opened it sees it
	answers  netip.AddrPort // who really answers
	tcpState uint8
	// entry are the attributes by which the kernel finds this entry and no later one.
	entry []byte
}

// open tells whether the connection can still carry something.
func (f flow) open() bool {
	return f.protocol != unix.IPPROTO_TCP ||
		(f.tcpState != nl.TCP_CONNTRACK_TIME_WAIT && f.tcpState != nl.TCP_CONNTRACK_CLOSE)
}

// flows are tracked connections, by what they have in common. What is zero may be
// anything; a port needs a protocol.
type flows struct {
	protocol uint8
	from     netip.Addr
	to       netip.AddrPort
	answers  netip.AddrPort
}

func (w flows) contain(f flow) bool {
	return (w.protocol == 0 || w.protocol == f.protocol) &&
		(!w.from.IsValid() || w.from == f.from.Addr()) &&
		contains(w.to, f.to) && contains(w.answers, f.answers)
}

func contains(want, got netip.AddrPort) bool {
	return (!want.Addr().IsValid() || want.Addr() == got.Addr()) && (want.Port() == 0 || want.Port() == got.Port())
}

// What the nl package lacks of linux/netfilter/nfnetlink_conntrack.h and of the flags
// that go with it.
const (
	ctaFilter           = 25
	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2

	partSrc      = 1 << 0
	partDst      = 1 << 1
	partProtocol = 1 << 3
	partSrcPort  = 1 << 4
	partDstPort  = 1 << 5
)

// attributes describe the flows to the kernel.
func (w flows) attributes() []nl.NetlinkRequestData {
	filter := nl.NewRtAttr(ctaFilter|unix.NLA_F_NESTED, nil)
	described := []nl.NetlinkRequestData{filter}
	add := func(direction, flags int, src, dst netip.AddrPort) {
		attr, parts := tuple(direction, w.protocol, src, dst)
		if parts&^partProtocol == 0 {
			return
		}
		filter.AddRtAttr(flags, nl.Uint32Attr(parts))
		described = append(described, attr)
	}
	add(nl.CTA_TUPLE_ORIG, ctaFilterOrigFlags, netip.AddrPortFrom(w.from, 0), w.to)
	add(nl.CTA_TUPLE_REPLY, ctaFilterReplyFlags, w.answers, netip.AddrPort{})
	return described
}

// tuple is one direction of a connection, as far as it is known, and the flags of
// the parts that are.
func tuple(direction int, protocol uint8, src, dst netip.AddrPort) (*nl.RtAttr, uint32) {
	attr := nl.NewRtAttr(direction|unix.NLA_F_NESTED, nil)
	var parts uint32
	if src.Addr().IsValid() || dst.Addr().IsValid() {
		ip := attr.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil)
		if src.Addr().IsValid() {
			parts |= partSrc
			ip.AddRtAttr(nl.CTA_IP_V4_SRC, src.Addr().AsSlice())
		}
		if dst.Addr().IsValid() {
			parts |= partDst
			ip.AddRtAttr(nl.CTA_IP_V4_DST, dst.Addr().AsSlice())
		}
	}
	if protocol == 0 {
		return attr, parts
	}
	parts |= partProtocol
	proto := attr.AddRtAttr(nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{protocol})
	if src.Port() != 0 {
		parts |= partSrcPort
		proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, nl.BEUint16Attr(src.Port()))
	}
	if dst.Port() != 0 {
		parts |= partDstPort
		proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, nl.BEUint16Attr(dst.Port()))
	}
	return attr, parts
}

// decodeFlow reads an entry of connection tracking. It is not ok if it is not one of IPv4.
func decodeFlow(message []byte) (f flow, ok bool) {
	if len(message) < nl.SizeofNfgenmsg || message[0] != unix.AF_INET {
		return flow{}, false
	}
	for kind, value := range attributes(message[nl.SizeofNfgenmsg:]) {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			f.protocol, f.from, f.to = decodeTuple(value)
			f.entry = appendAttribute(f.entry, kind|unix.NLA_F_NESTED, value)
		case nl.CTA_TUPLE_REPLY:
			_, f.answers, _ = decodeTuple(value)
		case nl.CTA_ID, nl.CTA_ZONE:
			f.entry = appendAttribute(f.entry, kind, value)
		case nl.CTA_PROTOINFO:
			f.tcpState = decodeTCPState(value)
		}
	}
	return f, f.protocol != 0 && f.from.IsValid() && f.to.IsValid() && f.answers.IsValid()
}

func decodeTuple(b []byte) (protocol uint8, src, dst netip.AddrPort) {
	var addrs [2]netip.Addr
	var ports [2]uint16
	for kind, value := range attributes(b) {
		for part, value := range attributes(value) {
			switch {
			case kind == nl.CTA_TUPLE_IP && (part == nl.CTA_IP_V4_SRC || part == nl.CTA_IP_V4_DST) && len(value) == 4:
				addrs[part-nl.CTA_IP_V4_SRC] = netip.AddrFrom4([4]byte(value))
			case kind == nl.CTA_TUPLE_PROTO && part == nl.CTA_PROTO_NUM && len(value) == 1:
				protocol = value[0]
			case kind == nl.CTA_TUPLE_PROTO && (part == nl.CTA_PROTO_SRC_PORT || part == nl.CTA_PROTO_DST_PORT) && len(value) == 2:
				ports[part-nl.CTA_PROTO_SRC_PORT] = binary.BigEndian.Uint16(value)
			}
		}
	}
	return protocol, netip.AddrPortFrom(addrs[0], ports[0]), netip.AddrPortFrom(addrs[1], ports[1])
}

func decodeTCPState(b []byte) uint8 {
	for kind, value := range attributes(b) {
		for part, value := range attributes(value) {
			if kind == nl.CTA_PROTOINFO_TCP && part == nl.CTA_PROTOINFO_TCP_STATE && len(value) == 1 {
				return value[0]
			}
		}
	}
	return nl.TCP_CONNTRACK_NONE
}

func appendAttribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(nl.SizeofNfattr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, aligned(len(value))-len(value))...)
}
