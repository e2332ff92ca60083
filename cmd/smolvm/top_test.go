package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smolvm/smolvm"
)

func TestLoads(t *testing.T) {
	look := func(name string, pid int, cpu time.Duration, received, toGuest int64) smolvm.Info {
		vm := smolvm.Info{Name: name, Usage: smolvm.Usage{Memory: 1000, CPU: cpu, Received: received, Sent: 2 * received}}
		vm.VMM.PID = pid
		f := forward(1, 2, smolvm.TCP)
		f.Open, f.ToGuest, f.FromGuest = 1, toGuest, 3*toGuest
		vm.Forwards = []smolvm.Forward{f, f}
		return vm
	}
	got := loads(
		[]smolvm.Info{look("a", 1, time.Second, 100, 10), look("gone", 2, 0, 0, 0), look("again", 3, time.Hour, 1<<40, 1<<40)},
		[]smolvm.Info{look("a", 1, 2*time.Second, 300, 20), look("again", 4, 200*time.Millisecond, 50, 5), {Name: "stopped"}},
		2*time.Second)
	want := []load{
		{Name: "a", CPUPercent: 50, Memory: 1000, Received: 100, Sent: 200, ToGuest: 10, FromGuest: 30, Connections: 2},
		// It was started again meanwhile, so that all that it has done is new.
		{Name: "again", CPUPercent: 10, Memory: 1000, Received: 25, Sent: 50, ToGuest: 5, FromGuest: 15, Connections: 2},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// A counter that went back, as that of a forward that was exposed anew, is no negative load.
	got = loads([]smolvm.Info{look("a", 1, time.Second, 100, 10)}, []smolvm.Info{look("a", 1, time.Second, 0, 0)}, time.Second)
	if l := got[0]; l.Received != 0 || l.ToGuest != 0 {
		t.Errorf("a negative load: %+v", l)
	}
}

func TestTopEnds(t *testing.T) {
	dataDir(t, "web")
	if got := invoke(t, "top", "--once", "--json", "--interval", "100ms"); got.stdout != "[]\n" || got.code != 0 {
		t.Errorf("top --once --json: %+v", got)
	}
	// Without --once it goes on, until it is interrupted.
	ctx, cancel := context.WithCancel(t.Context())
	g := &globals{}
	var looks int
	err := g.watchLoads(ctx, minInterval, false, func([]load) error {
		if looks++; looks == 2 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || looks != 2 {
		t.Errorf("after %d looks: %v", looks, err)
	}
}
