package forward

import (
	"runtime"
	"testing"
	"time"
)

// BenchmarkIdleDatagramServers reports what a forward costs that nobody uses.
func BenchmarkIdleDatagramServers(b *testing.B) {
	const many = 1000
	shared := newBuffers()
	for b.Loop() {
		before := memoryInUse()
		var servers []*datagramServer
		for range many {
			r, err := reserveDatagrams(0)
			if err != nil {
				b.Fatal(err)
			}
			servers = append(servers, serveDatagrams(r, quiet, shared, dialTo("")))
		}
		b.ReportMetric(float64(memoryInUse()-before)/many, "B/server")
		for _, s := range servers {
			s.close()
		}
	}
}

func memoryInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// BenchmarkDatagrams measures requests one after the other, and their answers.
func BenchmarkDatagrams(b *testing.B) {
	guest := echoServer(b, "127.0.0.1:0")
	_, port := startDatagrams(b, conversationIdle, dialTo(guest.LocalAddr().String()))
	c := talk(b, "127.0.0.1", port)
	c.SetDeadline(time.Time{})
	question, answer := make([]byte, 64), make([]byte, 64)
	for b.Loop() {
		if _, err := c.Write(question); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(answer); err != nil {
			b.Fatal(err)
		}
	}
}
