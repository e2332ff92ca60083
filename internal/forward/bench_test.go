package forward_test

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
)

// BenchmarkExpose measures what a user waits for, after the proof.
func BenchmarkExpose(b *testing.B) {
	m := newMachine(b)
	for _, transport := range []forward.Transport{forward.NFTables, forward.SSHTunnel} {
		b.Run(string(transport), func(b *testing.B) {
			var exposed, unexposed []time.Duration
			for b.Loop() {
				t0 := time.Now()
				f, err := m.Expose(b.Context(), forward.Request{GuestPort: 80, Transport: transport})
				must(b, err)
				t1 := time.Now()
				must(b, unexpose(b.Context(), m.Manager, f))
				exposed, unexposed = append(exposed, t1.Sub(t0)), append(unexposed, time.Since(t1))
			}
			b.ReportMetric(float64(median(exposed).Microseconds()), "µs-p50-expose")
			b.ReportMetric(float64(median(unexposed).Microseconds()), "µs-p50-unexpose")
		})
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkThroughput sends from the host to a guest that a virtual cable connects,
// so that the paths are compared and not a monitor. The copied path is what a proxy
// does that takes all bytes into its own memory.
func BenchmarkThroughput(b *testing.B) {
	s := newSite(b)
	sink := func(c *net.TCPConn) {
		block := make([]byte, 1<<20)
		for {
			if _, err := c.Read(block); err != nil {
				return
			}
		}
	}
	go serveConns(s.Listen("0.0.0.0:90"), sink)
	direct := netip.AddrPortFrom(siteAddr, 90).String()
	addresses := map[string]string{"direct": direct, "copied": copyingProxy(b, direct)}
	names := []string{"direct", "copied"}
	for _, way := range ways() {
		addresses[way.name] = path{s, way}.serve(b, sink)
		names = append(names, way.name)
	}
	for _, name := range names {
		b.Run(name, func(b *testing.B) {
			c, err := net.Dial("tcp", addresses[name])
			must(b, err)
			defer c.Close()
			chunk := make([]byte, 1<<20)
			b.SetBytes(int64(len(chunk)))
			for b.Loop() {
				_, err := c.Write(chunk)
				must(b, err)
			}
		})
		b.Run(name+"-connect", func(b *testing.B) {
			for b.Loop() {
				c, err := net.Dial("tcp", addresses[name])
				must(b, err)
				must(b, c.(*net.TCPConn).SetLinger(0))
				c.Close()
			}
		})
	}
}

// copyingProxy listens on ::1 until the benchmark ends.
func copyingProxy(b *testing.B, to string) (address string) {
	l, err := net.Listen("tcp", "[::1]:0")
	must(b, err)
	b.Cleanup(func() { l.Close() })
	go serveConns(l.(*net.TCPListener), func(client *net.TCPConn) {
		guest, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer guest.Close()
		io.CopyBuffer(struct{ io.Writer }{guest}, struct{ io.Reader }{client}, make([]byte, 64<<10))
	})
	return l.Addr().String()
}
