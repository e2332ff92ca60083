package network

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
)

// event is what a message of the kernel means here.
type event uint

const (
	// ruleEvent: somebody changed a packet filter that is not ours.
	ruleEvent event = 1 << iota
	// wayEvent: what lies between this host and its guests changed.
	wayEvent
	// lookEvent: what is ours may no longer be as it should.
	lookEvent
	// corpseEvent: another owner's guest is gone, and may have left something.
	corpseEvent
)

// everything is assumed to have changed when the kernel left events out.
const everything = ruleEvent | wayEvent | lookEvent | corpseEvent

// interests are what of this host matters to a process.
type interests struct {
	pool    netip.Prefix
	own     map[int]bool   // the indexes of its guests' interfaces
	uplinks map[int]string // the names of those that it needs forwarding on, by index
	egress  bool           // may any of its guests reach the world?
	wanted  func(forward.Mapping) bool
	corpses map[netip.Addr]bool // other owners' guests that are gone
}

// ofRules judges a message about nftables.
func (in *interests) ofRules(m message) event {
	if m.kind>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.data) < sizeofNfgenmsg {
		return 0
	}
	kind, family, data := m.kind&0xff, m.data[0], m.data[sizeofNfgenmsg:]
	if kind == unix.NFT_MSG_NEWGEN || kind == unix.NFT_MSG_TRACE {
		return 0
	}
	// The first attribute is the table's name, whatever the message is about.
	name := text(attribute(data, unix.NFTA_TABLE_NAME))
	if strings.HasPrefix(name, tracePrefix) {
		return 0
	}
	if name != tableName || (family != unix.NFPROTO_IPV4 && family != unix.NFPROTO_IPV6) {
		return ruleEvent
	}
	if kind != unix.NFT_MSG_NEWSETELEM && kind != unix.NFT_MSG_DELSETELEM {
		// Connections that were made meanwhile are unknown to the guards.
		return ruleEvent | lookEvent
	}
	// Forwards come and go all the time, and their number must not make each of them
	// cost more.
	switch text(attribute(data, unix.NFTA_SET_ELEM_LIST_SET)) {
	case setBorrowed:
		return lookEvent
	case mapName:
		if kind == unix.NFT_MSG_DELSETELEM && in.lost(attribute(data, unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
			return lookEvent
		}
	}
	return 0
}

// lost tells whether a list of deleted elements has one that this process wants.
func (in *interests) lost(list []byte) bool {
	for _, element := range attributes(list) {
		key := attribute(attribute(element, unix.NFTA_SET_ELEM_KEY), unix.NFTA_DATA_VALUE)
		val := attribute(attribute(element, unix.NFTA_SET_ELEM_DATA), unix.NFTA_DATA_VALUE)
		if m, ok := decodeMapping(nftables.SetElement{Key: key, Val: val}); !ok || in.wanted(m) {
			return true
		}
	}
	return false
}

// ofWays judges a message about links, addresses and routes.
func (in *interests) ofWays(m message) event {
	switch m.kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return in.ofLink(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.data) >= unix.SizeofIfAddrmsg && in.own[int(binary.NativeEndian.Uint32(m.data[4:]))] {
			return wayEvent | lookEvent
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return in.ofRoute(m)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return wayEvent
	}
	return 0
}

func (in *interests) ofLink(m message) event {
	if len(m.data) < unix.SizeofIfInfomsg {
		return 0
	}
	index := int(int32(binary.NativeEndian.Uint32(m.data[4:])))
	if in.own[index] {
		return wayEvent | lookEvent
	}
	name := text(attribute(m.data[unix.SizeofIfInfomsg:], unix.IFLA_IFNAME))
	if known, ok := in.uplinks[index]; ok && (known != name || m.kind == unix.RTM_DELLINK) {
		return lookEvent
	}
	n, ours := slotOf(name)
	if !ours || m.kind != unix.RTM_DELLINK {
		return 0
	}
	if _, guest, ok := n.addresses(in.pool); ok {
		if in.corpses == nil {
			in.corpses = make(map[netip.Addr]bool)
		}
		in.corpses[guest] = true
	}
	return corpseEvent
}

func (in *interests) ofRoute(m message) event {
	if len(m.data) < unix.SizeofRtMsg || m.data[0] != unix.AF_INET {
		return 0
	}
	bits, protocol, attrs := int(m.data[1]), m.data[5], m.data[unix.SizeofRtMsg:]
	if out := attribute(attrs, unix.RTA_OIF); len(out) == 4 && in.own[int(binary.NativeEndian.Uint32(out))] {
		return wayEvent | lookEvent
	}
	if bits <= 1 { // a default route, or half of one
		if in.egress {
			return lookEvent
		}
		return 0
	}
	dst, ok := netip.AddrFromSlice(attribute(attrs, unix.RTA_DST))
	// The kernel's own are those of other guests' interfaces.
	if !ok || !dst.Is4() || bits > 32 || protocol == unix.RTPROT_KERNEL ||
		!in.pool.Overlaps(netip.PrefixFrom(dst, bits)) {
		return 0
	}
	return wayEvent | lookEvent
}
