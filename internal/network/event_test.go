package network

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
)

// attr lays out an attribute.
func attr(kind uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, aligned(len(b))-len(b))...)
}

func zeroed(s string) []byte { return append([]byte(s), 0) }

// packed lays out a message.
func packed(kind uint16, header []byte, attrs ...[]byte) []byte {
	data := append([]byte{}, header...)
	for _, a := range attrs {
		data = append(data, a...)
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return append(append(b, make([]byte, 10)...), data...)
}

func ruleMessage(kind uint16, family byte, attrs ...[]byte) []byte {
	return packed(unix.NFNL_SUBSYS_NFTABLES<<8|kind, []byte{family, 0, 0, 0}, attrs...)
}

func linkMessage(kind uint16, index byte, name string) []byte {
	header := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(header[4:], uint32(index))
	return packed(kind, header, attr(unix.IFLA_IFNAME, zeroed(name)...))
}

func routeMessage(bits, protocol byte, attrs ...[]byte) []byte {
	header := make([]byte, unix.SizeofRtMsg)
	header[0], header[1], header[5] = unix.AF_INET, bits, protocol
	return packed(unix.RTM_DELROUTE, header, attrs...)
}

// someInterests are those of the owner of an interface 5 with one forward.
func someInterests() *interests {
	mine := forward.Mapping{Protocol: forward.TCP, HostPort: 8000, Guest: netip.MustParseAddrPort("198.18.0.1:80")}
	return &interests{
		pool: DefaultPool(), own: map[int]bool{5: true}, uplinks: map[int]string{2: "eth0"}, egress: true,
		wanted: func(m forward.Mapping) bool { return m == mine },
	}
}

func deletedElement(port uint16) []byte {
	key := []byte{unix.IPPROTO_TCP, 0, 0, 0, byte(port >> 8), byte(port), 0, 0}
	element := append(attr(unix.NFTA_SET_ELEM_KEY, attr(unix.NFTA_DATA_VALUE, key...)...),
		attr(unix.NFTA_SET_ELEM_DATA, attr(unix.NFTA_DATA_VALUE, 198, 18, 0, 1, 0, 80, 0, 0)...)...)
	return ruleMessage(unix.NFT_MSG_DELSETELEM, unix.NFPROTO_IPV4, attr(1, zeroed(tableName)...), attr(2, zeroed(mapName)...),
		attr(3, attr(1, element...)...))
}

func TestEvents(t *testing.T) {
	own := attr(1, zeroed(tableName)...)
	for _, test := range []struct {
		name     string
		judge    func(*interests, message) event
		datagram []byte
		want     event
	}{
		{"our rule goes", (*interests).ofRules, ruleMessage(unix.NFT_MSG_DELRULE, unix.NFPROTO_IPV4, own), ruleEvent | lookEvent},
		{"our IPv6 table goes", (*interests).ofRules, ruleMessage(unix.NFT_MSG_DELTABLE, unix.NFPROTO_IPV6, own), ruleEvent | lookEvent},
		{"a forward comes", (*interests).ofRules, ruleMessage(unix.NFT_MSG_NEWSETELEM, unix.NFPROTO_IPV4, own, attr(2, zeroed(mapName)...)), 0},
		{"our forward goes", (*interests).ofRules, deletedElement(8000), lookEvent},
		{"another's forward goes", (*interests).ofRules, deletedElement(8001), 0},
		{"a guarded interface goes", (*interests).ofRules, ruleMessage(unix.NFT_MSG_DELSETELEM, unix.NFPROTO_IPV4, own, attr(2, zeroed(setBorrowed)...)), lookEvent},
		{"another table of our name", (*interests).ofRules, ruleMessage(unix.NFT_MSG_NEWTABLE, unix.NFPROTO_INET, own), ruleEvent},
		{"another's rule", (*interests).ofRules, ruleMessage(unix.NFT_MSG_NEWRULE, unix.NFPROTO_INET, attr(1, zeroed("filter")...)), ruleEvent},
		{"a trace", (*interests).ofRules, ruleMessage(unix.NFT_MSG_NEWTABLE, unix.NFPROTO_IPV4, attr(1, zeroed(tracePrefix+"1")...)), 0},
		{"a generation", (*interests).ofRules, ruleMessage(unix.NFT_MSG_NEWGEN, 0, attr(1, 0, 0, 0, 7)), 0},
		{"our interface", (*interests).ofWays, linkMessage(unix.RTM_NEWLINK, 5, "other0"), wayEvent | lookEvent},
		{"another's interface comes", (*interests).ofWays, linkMessage(unix.RTM_NEWLINK, 6, "smol6"), 0},
		{"another's interface goes", (*interests).ofWays, linkMessage(unix.RTM_DELLINK, 6, "smol6"), corpseEvent},
		{"an uplink tells of its state", (*interests).ofWays, linkMessage(unix.RTM_NEWLINK, 2, "eth0"), 0},
		{"an uplink is renamed", (*interests).ofWays, linkMessage(unix.RTM_NEWLINK, 2, "wan0"), lookEvent},
		{"a default route", (*interests).ofWays, routeMessage(0, unix.RTPROT_STATIC), lookEvent},
		{"the pool's route", (*interests).ofWays, routeMessage(16, routeProtocol, attr(unix.RTA_DST, 198, 18, 0, 0)), wayEvent | lookEvent},
		{"a route to a guest", (*interests).ofWays, routeMessage(32, unix.RTPROT_STATIC, attr(unix.RTA_DST, 198, 18, 0, 1)), wayEvent | lookEvent},
		{"another guest's own route", (*interests).ofWays, routeMessage(31, unix.RTPROT_KERNEL, attr(unix.RTA_DST, 198, 18, 0, 8)), 0},
		{"our guest's own route", (*interests).ofWays, routeMessage(31, unix.RTPROT_KERNEL, attr(unix.RTA_DST, 198, 18, 0, 0), attr(unix.RTA_OIF, 5, 0, 0, 0)), wayEvent | lookEvent},
		{"a route elsewhere", (*interests).ofWays, routeMessage(24, unix.RTPROT_STATIC, attr(unix.RTA_DST, 10, 0, 0, 0)), 0},
	} {
		var got event
		for m := range messages(test.datagram) {
			got |= test.judge(someInterests(), m)
		}
		if got != test.want {
			t.Errorf("%s: %b, want %b", test.name, got, test.want)
		}
	}
}

func FuzzEvents(f *testing.F) {
	f.Add(deletedElement(8000))
	f.Add(linkMessage(unix.RTM_NEWLINK, 5, "smol5"))
	f.Add(routeMessage(16, routeProtocol, attr(unix.RTA_DST, 198, 18, 0, 0)))
	f.Add(append(ruleMessage(unix.NFT_MSG_NEWRULE, 1, attr(1, 'x', 0)), 4, 0))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		in, total := someInterests(), 0
		for m := range messages(datagram) {
			total += unix.SizeofNlMsghdr + len(m.data)
			if e := in.ofRules(m) | in.ofWays(m); e&^everything != 0 {
				t.Errorf("unknown event %b", e)
			}
		}
		if total > len(datagram) {
			t.Errorf("%d bytes were read from %d", total, len(datagram))
		}
	})
}

func traceMessage(attrs ...[]byte) []byte {
	return ruleMessage(unix.NFT_MSG_TRACE, unix.NFPROTO_INET, append([][]byte{
		attr(unix.NFTA_TRACE_TABLE, zeroed("filter")...), attr(unix.NFTA_TRACE_CHAIN, zeroed("output")...), attr(unix.NFTA_TRACE_ID, 0, 0, 0, 9),
	}, attrs...)...)
}

func TestParseTrace(t *testing.T) {
	verdict := func(b ...byte) []byte { return attr(unix.NFTA_TRACE_VERDICT, attr(unix.NFTA_VERDICT_CODE, b...)...) }
	kind := func(n byte) []byte { return attr(unix.NFTA_TRACE_TYPE, 0, 0, 0, n) }
	handle := attr(unix.NFTA_TRACE_RULE_HANDLE, 0, 0, 0, 0, 0, 0, 0, 3)
	base := traceStep{id: 9, family: unix.NFPROTO_INET, table: "filter", chain: "output"}
	with := func(handle uint64, drops bool) traceStep {
		s := base
		s.handle, s.drops = handle, drops
		return s
	}
	for name, test := range map[string]struct {
		datagram []byte
		want     traceStep
	}{
		"rule drops":       {traceMessage(kind(traceRule), handle, verdict(0, 0, 0, 0)), with(3, true)},
		"drops with error": {traceMessage(kind(traceRule), handle, verdict(0, 13, 0, 0)), with(3, true)},
		"rule accepts":     {traceMessage(kind(traceRule), handle, verdict(0, 0, 0, 1)), with(3, false)},
		"rule goes on":     {traceMessage(kind(traceRule), handle, verdict(255, 255, 255, 255)), with(3, false)},
		"policy drops":     {traceMessage(kind(tracePolicy), attr(unix.NFTA_TRACE_POLICY, 0, 0, 0, 0)), with(0, true)},
		"policy accepts":   {traceMessage(kind(tracePolicy), attr(unix.NFTA_TRACE_POLICY, 0, 0, 0, 1)), with(0, false)},
		"no verdict":       {traceMessage(kind(traceRule), handle), with(3, false)},
	} {
		for m := range messages(test.datagram) {
			if got, ok := parseTrace(m); !ok || got != test.want {
				t.Errorf("%s: %+v, %v", name, got, ok)
			}
		}
	}
}

func FuzzParseTrace(f *testing.F) {
	f.Add(traceMessage(attr(unix.NFTA_TRACE_TYPE, 0, 0, 0, tracePolicy), attr(unix.NFTA_TRACE_POLICY, 0, 0, 0, 0)))
	f.Add(traceMessage(attr(unix.NFTA_TRACE_TYPE, 0, 0, 0, traceRule), attr(unix.NFTA_TRACE_VERDICT, attr(unix.NFTA_VERDICT_CODE, 0)...)))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		for m := range messages(datagram) {
			if step, ok := parseTrace(m); ok && step.table == "" {
				t.Error("a step in no table")
			}
		}
	})
}
