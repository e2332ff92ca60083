package forward_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/network"
	"github.com/smolvm/smolvm/internal/network/nettest"
)

// BenchmarkExpose measures what a user waits for, after the proof.
func BenchmarkExpose(b *testing.B) {
	m := newMachine(b)
	for _, transport := range []forward.Transport{forward.NFTables, forward.SSHTunnel} {
		b.Run(string(transport), func(b *testing.B) {
			var expose, unexpose []time.Duration
			for b.Loop() {
				t0 := time.Now()
				f, err := m.Expose(b.Context(), forward.Request{GuestPort: 80, Transport: transport})
				must(b, err)
				t1 := time.Now()
				must(b, m.Unexpose(b.Context(), f.HostPort, f.GuestPort))
				expose, unexpose = append(expose, t1.Sub(t0)), append(unexpose, time.Since(t1))
			}
			b.ReportMetric(float64(median(expose).Microseconds()), "µs-p50-expose")
			b.ReportMetric(float64(median(unexpose).Microseconds()), "µs-p50-unexpose")
		})
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkThroughput sends from the host to a guest that a virtual cable connects,
// so that the paths are compared and not a monitor.
func BenchmarkThroughput(b *testing.B) {
	guest := nettest.Neighbour(b, "smol0", "198.18.0.0/31", "198.18.0.1/31", false)
	must(b, nettest.Set("ipv4/conf/smol0/route_localnet", "1"))
	host := network.NewHost(network.Options{RuntimeDir: b.TempDir()})
	b.Cleanup(func() { must(b, errors.Join(host.Reap(context.Background()), host.Close())) })
	go serveName(guest.Listen("0.0.0.0:22"), "SSH-2.0-test")
	addr := netip.MustParseAddr("198.18.0.1")
	m := forward.NewManager(forward.Config{VM: "bench", Table: host.Table(), Guest: addr, Tunnel: forward.Direct(addr)})
	defer m.Close()
	sink := guest.Listen("0.0.0.0:90")
	go func() {
		for {
			c, err := sink.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(io.Discard, c)
			}()
		}
	}()
	f, err := m.Expose(b.Context(), forward.Request{GuestPort: 90, Transport: forward.NFTables})
	must(b, err)
	for _, path := range []struct {
		name, host string
		port       int
	}{
		{"direct", addr.String(), 90},
		{"nftables", "127.0.0.1", f.HostPort},
		{"spliced", "::1", f.HostPort},
	} {
		b.Run(path.name, func(b *testing.B) {
			c, err := net.Dial("tcp", net.JoinHostPort(path.host, strconv.Itoa(path.port)))
			must(b, err)
			defer c.Close()
			chunk := make([]byte, 1<<20)
			b.SetBytes(int64(len(chunk)))
			for b.Loop() {
				_, err := c.Write(chunk)
				must(b, err)
			}
		})
		b.Run(path.name+"-connect", func(b *testing.B) {
			for b.Loop() {
				c, err := net.Dial("tcp", net.JoinHostPort(path.host, strconv.Itoa(path.port)))
				must(b, err)
				must(b, c.(*net.TCPConn).SetLinger(0))
				c.Close()
			}
		})
	}
}
