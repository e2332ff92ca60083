package network

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
)

// BenchmarkTable measures one forward's life, beside none and beside ten thousand.
func BenchmarkTable(b *testing.B) {
	h := testHost(b)
	guest := newEchoer(b, h, "guest")
	crowd := many(10_000, guest.GuestAddr)
	for _, size := range []struct {
		name     string
		mappings []forward.Mapping
	}{{"beside=0", nil}, {"beside=10000", crowd}} {
		b.Run(size.name, func(b *testing.B) {
			expose(b, h, size.mappings...)
			m := guest.mapping(forward.TCP, 8000)
			spent := make(map[string][]time.Duration)
			step := func(name string, f func() error) {
				begin := time.Now()
				if err := f(); err != nil {
					b.Fatal(err)
				}
				spent[name] = append(spent[name], time.Since(begin))
			}
			for b.Loop() {
				step("add", func() error { return h.Table().Add(b.Context(), m) })
				var c net.Conn
				step("connect", func() (err error) {
					c, err = net.Dial("tcp", "127.0.0.1:8000")
					return err
				})
				step("lookup", func() error {
					_, err := h.Table().Lookup(b.Context(), m.Protocol, m.HostPort)
					return err
				})
				step("delete", func() error { return h.Table().Delete(b.Context(), m) })
				step("end", func() error { return h.Table().EndFlows(b.Context(), m) })
				c.Close()
			}
			for name, d := range spent {
				slices.Sort(d)
				b.ReportMetric(float64(d[len(d)/2].Microseconds()), "µs-p50-"+name)
			}
			unexpose(b, h, size.mappings...)
		})
	}
}

// BenchmarkTraffic has one connection to list.
func BenchmarkTraffic(b *testing.B) {
	h := testHost(b)
	guest := newEchoer(b, h, "guest")
	m := guest.mapping(forward.TCP, 8000)
	expose(b, h, m)
	dialHere(b, "tcp", 8000)
	for b.Loop() {
		trafficOf(b, h, m)
	}
}

// BenchmarkEndFlows compares the two ways of ending connections.
func BenchmarkEndFlows(b *testing.B) {
	h := testHost(b)
	guest := netip.AddrPortFrom(netip.MustParseAddr("198.18.0.1"), 80)
	which, err := forwardedFlows(forward.Mapping{Protocol: forward.TCP, HostPort: 8000, Guest: guest})
	if err != nil {
		b.Fatal(err)
	}
	for name, listing := range map[string]bool{"search": false, "listing": true} {
		b.Run(name, func(b *testing.B) {
			h.cannotFlush.Store(listing)
			for b.Loop() {
				if err := h.endFlows(which); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("clients", func(b *testing.B) {
		for b.Loop() {
			if _, err := h.abortClients([]forward.Mapping{{Protocol: forward.TCP, HostPort: 8000, Guest: guest}}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
