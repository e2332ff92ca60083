package network

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// BenchmarkLife measures how VMs come to the network and go: one by one, and many at once.
func BenchmarkLife(b *testing.B) {
	for _, crowd := range []int{1, 20, 100} {
		b.Run(fmt.Sprintf("at-once=%d", crowd), func(b *testing.B) {
			hosts := make([]*Host, crowd) // a process each
			dir := testHost(b).dir
			for i := range hosts {
				hosts[i] = NewHost(Options{RuntimeDir: dir})
			}
			defer func() {
				for _, h := range hosts {
					h.Close()
				}
			}()
			var attached, closed time.Duration
			for b.Loop() {
				begin := time.Now()
				interfaces := make([]*Interface, crowd)
				each(crowd, func(i int) {
					var err error
					interfaces[i], err = hosts[i].Attach(b.Context(), Attachment{VM: "bench", Egress: true})
					if err != nil {
						b.Error(err)
					}
				})
				if b.Failed() {
					return
				}
				attached += time.Since(begin)
				begin = time.Now()
				each(crowd, func(i int) {
					if err := interfaces[i].Close(); err != nil {
						b.Error(err)
					}
				})
				closed += time.Since(begin)
			}
			n := float64(b.N * crowd)
			b.ReportMetric(float64(attached.Microseconds())/n, "µs-attach")
			b.ReportMetric(float64(closed.Microseconds())/n, "µs-close")
		})
	}
}

// each runs f at once for each number up to n.
func each(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}
