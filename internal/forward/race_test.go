package forward_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/network"
)

const (
	racingProcesses  = 4
	racingGoroutines = 64 // in each process
	racingRounds     = 1
	racingPorts      = 8 // far fewer than those who want one
)

// racerVariable makes the test program one that races for ports: with whom, for
// which, and as the how manieth.
const racerVariable = "SMOLVM_FORWARD_TEST_RACER"

// TestRace has processes, and goroutines in each, expose and unexpose the same ports.
// No port is ever anybody else's than it is said to be, and nothing is left.
func TestRace(t *testing.T) {
	s := newSite(t)
	must(t, s.manager.Prove(t.Context()))
	before := settled(t)
	first := freePorts(t, racingPorts)
	var wg sync.WaitGroup
	for i := range racingProcesses {
		wg.Go(func() {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d", racerVariable, s.runtime, first, i))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("process %d: %v: %s", i, err, out)
			}
		})
	}
	wg.Wait()
	wantFootprint(t, before)
	// All is as if nobody had been there.
	for i := range racingPorts {
		f, err := s.manager.Expose(t.Context(), forward.Request{GuestPort: 80, HostPort: first + i, Strict: true})
		must(t, err)
		must(t, unexpose(t.Context(), s.manager, f))
	}
}

// freePorts returns the first of so many ports in a row that nothing has.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	for range 100 {
		first := freePort(t)
		free := 0
		for free < n && forward.PortAvailable(first+free) {
			free++
		}
		if free == n {
			return first
		}
	}
	t.Fatalf("no %d ports in a row are free", n)
	return 0
}

// race is the program of a process that races.
func race(description string) {
	var runtime string
	var first, process int
	if _, err := fmt.Sscan(description, &runtime, &first, &process); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if err := raceFor(runtime, first, process); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func raceFor(runtime string, first, process int) error {
	ctx := context.Background()
	host := network.NewHost(network.Options{RuntimeDir: runtime})
	table := host.Table()
	m := forward.NewManager(forward.Config{VM: "racer " + strconv.Itoa(process), Table: table, Guest: siteAddr})
	errs := make([]error, racingGoroutines)
	var wins sync.Map // of the ports that were had
	var wg sync.WaitGroup
	for g := range errs {
		wg.Go(func() {
			// Each wants the ports for a guest port of its own, by which it is known.
			guestPort := 1000 + process*racingGoroutines + g
			for round := range racingRounds {
				req := forward.Request{GuestPort: guestPort, HostPort: first + (g+round)%racingPorts, Strict: (g/racingPorts+round)%2 == 0}
				f, err := m.Expose(ctx, req)
				if req.Strict && errors.Is(err, forward.ErrPortInUse) {
					continue
				}
				if err == nil {
					wins.Store(f.HostPort, true)
					err = errors.Join(owned(ctx, table, f, req), unexpose(ctx, m, f))
				}
				if err != nil {
					errs[g] = fmt.Errorf("%+v: %w", req, err)
					return
				}
			}
		})
	}
	wg.Wait()
	won := 0
	wins.Range(func(any, any) bool { won++; return true })
	if won == 0 {
		errs = append(errs, errors.New("this process never had a port"))
	}
	if left := m.Forwards(); len(left) > 0 {
		errs = append(errs, fmt.Errorf("left: %+v", left))
	}
	return errors.Join(append(errs, m.Close(), host.Close())...)
}

// owned checks that a port that was granted is the caller's, in the kernel too.
func owned(ctx context.Context, table forward.Table, f forward.Forward, req forward.Request) error {
	if req.Strict && f.HostPort != req.HostPort {
		return fmt.Errorf("got port %d, strictly", f.HostPort)
	}
	if f.Transport != forward.NFTables {
		return fmt.Errorf("got %s: %s", f.Transport, f.Reason)
	}
	want := netip.AddrPortFrom(siteAddr, uint16(req.GuestPort))
	if got, err := table.Lookup(ctx, forward.TCP, uint16(f.HostPort)); err != nil || got != want {
		return fmt.Errorf("the kernel sends port %d to %v, not %v: %w", f.HostPort, got, want, err)
	}
	if forward.PortAvailable(f.HostPort) {
		return fmt.Errorf("port %d is exposed and free", f.HostPort)
	}
	return nil
}
