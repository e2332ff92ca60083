package network

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// entryOf is the kernel's message about a connection.
func entryOf(f flow) []byte {
	orig, _ := tuple(nl.CTA_TUPLE_ORIG, f.protocol, f.from, f.to)
	reply, _ := tuple(nl.CTA_TUPLE_REPLY, f.protocol, f.answers, f.from)
	state := nl.NewRtAttr(nl.CTA_PROTOINFO|unix.NLA_F_NESTED, nil)
	state.AddRtAttr(nl.CTA_PROTOINFO_TCP|unix.NLA_F_NESTED, nil).AddRtAttr(nl.CTA_PROTOINFO_TCP_STATE, []byte{f.tcpState})
	b := []byte{unix.AF_INET, 0, 0, 0}
	for _, attr := range []*nl.RtAttr{orig, reply, state} {
		b = append(b, attr.Serialize()...)
	}
	return b
}

func someFlow() flow {
	return flow{
		protocol: unix.IPPROTO_TCP,
		from:     netip.MustParseAddrPort("127.0.0.1:40000"),
		to:       netip.MustParseAddrPort("127.0.0.1:8000"),
		answers:  netip.MustParseAddrPort("198.18.0.1:80"),
		tcpState: nl.TCP_CONNTRACK_ESTABLISHED,
	}
}

func TestDecodeFlow(t *testing.T) {
	want := someFlow()
	got, ok := decodeFlow(entryOf(want))
	if !ok || got.protocol != want.protocol || got.from != want.from || got.to != want.to ||
		got.answers != want.answers || got.tcpState != want.tcpState {
		t.Errorf("got %+v, %v", got, ok)
	}
	for name, broken := range map[string]flow{
		"protocol":  {from: want.from, to: want.to, answers: want.answers},
		"addresses": {protocol: want.protocol, from: want.from},
	} {
		if got, ok := decodeFlow(entryOf(broken)); ok {
			t.Errorf("without %s it is %+v", name, got)
		}
	}
}

func TestFlowsContain(t *testing.T) {
	f := someFlow()
	guest := f.answers.Addr()
	for _, test := range []struct {
		which flows
		want  bool
	}{
		{flows{}, true},
		{flows{protocol: unix.IPPROTO_TCP, to: f.to, answers: f.answers}, true},
		{flows{protocol: unix.IPPROTO_UDP, to: f.to}, false},
		{flows{protocol: unix.IPPROTO_TCP, to: netip.AddrPortFrom(f.to.Addr(), 8001)}, false},
		{flows{protocol: unix.IPPROTO_TCP, to: f.to, answers: netip.AddrPortFrom(guest, 81)}, false},
		{flows{answers: netip.AddrPortFrom(guest, 0)}, true},
		{flows{answers: netip.AddrPortFrom(guest.Next(), 0)}, false},
		{flows{from: guest}, false},
		{flows{from: f.from.Addr()}, true},
	} {
		if got := test.which.contain(f); got != test.want {
			t.Errorf("%+v: %v", test.which, got)
		}
	}
}

// TestFlowsAreNeverDescribedAsAll: a request to end connections that describes none would
// end all of the host's.
func TestFlowsAreNeverDescribedAsAll(t *testing.T) {
	f := someFlow()
	which := append(guestFlows(f.answers.Addr()), flows{protocol: f.protocol, to: f.to, answers: f.answers})
	for _, w := range which {
		var described, directions bool
		for _, attr := range w.attributes() {
			for kind, value := range attributes(attr.(*nl.RtAttr).Serialize()) {
				switch kind {
				case nl.CTA_TUPLE_ORIG, nl.CTA_TUPLE_REPLY:
					_, src, dst := decodeTuple(value)
					if src.IsValid() && dst.IsValid() {
						t.Errorf("%+v: old kernels would take this for one connection", w)
					}
					directions = true
				case ctaFilter:
					for range attributes(value) {
						described = true
					}
				}
			}
		}
		if !described || !directions {
			t.Errorf("%+v is described as everything", w)
		}
	}
}

func FuzzDecodeFlow(f *testing.F) {
	f.Add(entryOf(someFlow()))
	f.Add([]byte{unix.AF_INET, 0, 0, 0, 5, 0, 1, 0x80, 0})
	f.Fuzz(func(t *testing.T, message []byte) {
		found, ok := decodeFlow(message)
		if !ok {
			return
		}
		if !found.from.Addr().Is4() || !found.to.Addr().Is4() || !found.answers.Addr().Is4() {
			t.Errorf("not of IPv4: %+v", found)
		}
		again, ok := decodeFlow(entryOf(found))
		if !ok || again.from != found.from || again.to != found.to {
			t.Errorf("%+v became %+v", found, again)
		}
	})
}

func FuzzDecodeClient(f *testing.F) {
	f.Add(make([]byte, diagIDStart+diagIDSize))
	f.Add([]byte{unix.AF_INET})
	f.Fuzz(func(t *testing.T, message []byte) {
		c, ok := decodeClient(message)
		if ok != (len(message) >= diagIDStart+diagIDSize) {
			t.Fatalf("%d bytes: %v", len(message), ok)
		}
		if ok && (!c.from.IsValid() || !c.to.IsValid() || c.to.Addr().Is4In6()) {
			t.Errorf("%+v", c)
		}
	})
}
