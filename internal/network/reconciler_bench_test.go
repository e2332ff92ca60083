package network

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// attended is a Host with one guest.
func attended(b *testing.B) *Host {
	b.Helper()
	h := testHost(b)
	attach(b, h, Attachment{VM: "a", Egress: true})
	return h
}

// BenchmarkSettled is what an owner does twice a second.
func BenchmarkSettled(b *testing.B) {
	h := attended(b)
	for b.Loop() {
		if !h.reconciler.settled() {
			b.Fatal("it is not settled")
		}
	}
}

// BenchmarkLook is what an owner does after an event, when there is nothing to mend.
func BenchmarkLook(b *testing.B) {
	h := attended(b)
	for b.Loop() {
		if err := h.reconciler.look(b.Context(), h); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIdle is the processor time that an owner takes in a second of idling.
func BenchmarkIdle(b *testing.B) {
	attended(b)
	var before, after unix.Rusage
	for b.Loop() {
		b.StopTimer()
		if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
			b.Fatal(err)
		}
		<-time.After(5 * time.Second)
		if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	used := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	b.ReportMetric(float64(used.Microseconds())/5, "cpu-µs/s")
}
