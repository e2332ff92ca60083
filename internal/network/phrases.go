package network

import (
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// In this file each function is one phrase of a rule, as the nft program writes it. They
// use register 1, like it.

// not inverts a phrase that ends in a comparison.
func not(phrase []expr.Any) []expr.Any {
	phrase[len(phrase)-1].(*expr.Cmp).Op = expr.CmpOpNeq
	return phrase
}

func equal(data []byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func iifname(pattern string) []expr.Any { return ifname(expr.MetaKeyIIFNAME, pattern) }
func oifname(pattern string) []expr.Any { return ifname(expr.MetaKeyOIFNAME, pattern) }

// ifname compares an interface's name, or its beginning if the pattern ends in a star.
func ifname(key expr.MetaKey, pattern string) []expr.Any {
	data := ifnameKey(pattern)
	if n := len(pattern) - 1; pattern[n] == '*' {
		data = []byte(pattern[:n])
	}
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, equal(data)}
}

// ifnameKey is an interface's name as the kernel compares it.
func ifnameKey(name string) []byte {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key[:unix.IFNAMSIZ-1], name)
	return key
}

func iifnameIn(set string) []expr.Any {
	return append([]expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}}, in(set)...)
}

// in looks up in a set what the phrases before it have loaded.
func in(set string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: set}}
}

func iifgroupNot(group uint32) []expr.Any {
	return not([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFGROUP, Register: 1},
		equal(binaryutil.NativeEndian.PutUint32(group)),
	})
}

func saddrIn(p netip.Prefix) []expr.Any { return address(12, p) }
func daddrIn(p netip.Prefix) []expr.Any { return address(16, p) }

// address compares the address at an offset of the IPv4 header.
func address(offset uint32, p netip.Prefix) []expr.Any {
	addr := p.Masked().Addr().As4()
	if p.Bits()%8 == 0 { // whole bytes are compared without a mask
		n := p.Bits() / 8
		return []expr.Any{payload(expr.PayloadBaseNetworkHeader, offset, uint32(n)), equal(addr[:n])}
	}
	mask := binaryutil.BigEndian.PutUint32(^uint32(0) << (32 - p.Bits()))
	return []expr.Any{
		payload(expr.PayloadBaseNetworkHeader, offset, 4),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		equal(addr[:]),
	}
}

func payload(base expr.PayloadBase, offset, length uint32) *expr.Payload {
	return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: length}
}

// noRouteBack matches a source address that this host would not reach by the
// interface that the packet came in by.
func noRouteBack() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true, FlagPRESENT: true},
		equal(make([]byte, 4)),
	}
}

// toOwnHostEnd matches packets to an address of the interface they came in by.
func toOwnHostEnd() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, FlagIIF: true, ResultADDRTYPE: true},
		equal(binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)),
	}
}

func l4proto(protocol byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{protocol})}
}

func echoRequest() []expr.Any {
	const icmpEcho = 8
	return append(l4proto(unix.IPPROTO_ICMP),
		payload(expr.PayloadBaseTransportHeader, 0, 1), equal([]byte{icmpEcho}))
}

// tcpNotOpening matches TCP packets other than a connection's first. The
// kernel asks NAT rules about those only if it has forgotten the connection.
func tcpNotOpening() []expr.Any {
	const fin, syn, rst, ack = 1, 2, 4, 16
	return not(append(l4proto(unix.IPPROTO_TCP),
		payload(expr.PayloadBaseTransportHeader, 13, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}},
		equal([]byte{syn})))
}

func ctState(any uint32) []expr.Any   { return not(ctBits(expr.CtKeySTATE, any)) }
func noCtState(any uint32) []expr.Any { return ctBits(expr.CtKeySTATE, any) }

func notDNATed() []expr.Any {
	const statusDNAT = 1 << 5 // IPS_DST_NAT
	return ctBits(expr.CtKeySTATUS, statusDNAT)
}

// ctBits matches connections with none of the bits.
func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4),
		},
		equal(make([]byte, 4)),
	}
}

// Where the headers of TCP and UDP alike have the ports.
const (
	sourcePort      = 0
	destinationPort = 2
)

// second is the 32-bit register after the first one of register 1.
const second = 9

// protocolAndPort loads the key of forwards.
func protocolAndPort(offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Payload{DestRegister: second, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
	}
}

// dnatByMap rewrites the destination to what the map has for protocol and port.
func dnatByMap() []expr.Any {
	return append(protocolAndPort(destinationPort),
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: mapName},
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4,
			RegAddrMin: 1, RegAddrMax: 1, RegProtoMin: second, RegProtoMax: second, Specified: true,
		})
}

func masquerade() []expr.Any                   { return []expr.Any{&expr.Masq{}} }
func drop() []expr.Any                         { return verdict(expr.VerdictDrop) }
func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }
