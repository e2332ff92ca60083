package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/smolvm/smolvm/internal/forward"
)

// many are mappings of both protocols to as many ports of guests.
func many(n int, guest netip.Addr) []forward.Mapping {
	mappings := make([]forward.Mapping, n)
	for i := range mappings {
		mappings[i] = forward.Mapping{
			Protocol: []forward.Protocol{forward.TCP, forward.UDP}[i%2],
			HostPort: uint16(20000 + i/2), Guest: netip.AddrPortFrom(guest, uint16(1+i)),
		}
	}
	return mappings
}

func TestBulkIsAllOrNothing(t *testing.T) {
	h := testHost(t)
	a, b := attach(t, h, Attachment{VM: "a"}), attach(t, h, Attachment{VM: "b"})
	table, ctx := h.Table(), t.Context()
	for _, n := range []int{3, 100, 3000} { // one by one, by listing all, in several messages
		mappings := many(n, a.GuestAddr)
		taken := mappings[n*2/3]
		taken.Guest = netip.AddrPortFrom(b.GuestAddr, 80)
		expose(t, h, taken)
		alone := run(t, "nft", "list", "ruleset")
		err := table.Add(ctx, mappings...)
		var mapped *forward.MappedError
		if !errors.As(err, &mapped) || mapped.Mapping != mappings[n*2/3] {
			t.Fatalf("%d mappings, one of them taken: %v", n, err)
		}
		if run(t, "nft", "list", "ruleset") != alone {
			t.Fatalf("%d mappings were refused, and something of them is there", n)
		}
		unexpose(t, h, taken)
		empty := run(t, "nft", "list", "ruleset")
		expose(t, h, mappings...)
		expose(t, h, mappings...) // the same again is no error
		if got, err := table.Lookup(ctx, mappings[n-1].Protocol, mappings[n-1].HostPort); err != nil || got != mappings[n-1].Guest {
			t.Errorf("the last of %d goes to %v, %v", n, got, err)
		}
		// What is another's stays, and does not keep the rest.
		unexpose(t, h, mappings[n*2/3])
		expose(t, h, taken)
		unexpose(t, h, append(mappings, mappings[0])...)
		if run(t, "nft", "list", "ruleset") != alone {
			t.Errorf("after removing %d:\n%s", n, run(t, "nft", "list", "ruleset"))
		}
		unexpose(t, h, taken)
		if run(t, "nft", "list", "ruleset") != empty {
			t.Errorf("something of %d mappings is left", n)
		}
	}
	m := many(1, a.GuestAddr)[0]
	contrary := m
	contrary.Guest = netip.AddrPortFrom(b.GuestAddr, 80)
	if err := table.Add(ctx, m, contrary); !errors.Is(err, forward.ErrMapped) {
		t.Errorf("one port to two guests: %v", err)
	}
	if err := table.Add(ctx); err != nil {
		t.Errorf("nothing: %v", err)
	}
}

func TestTenThousandForwards(t *testing.T) {
	h := testHost(t)
	guest := newEchoer(t, h, "guest")
	const n = 10_000
	mappings := many(n, guest.GuestAddr)
	empty := run(t, "nft", "list", "ruleset")
	expose(t, h, mappings...)
	m := guest.mapping(forward.TCP, 8000)
	expose(t, h, m)
	wantSay(t, dialHere(t, "tcp", 8000), "1", "guest1")
	traffic := trafficOf(t, h, append(mappings, m)...)
	for i, got := range traffic[:n] {
		if got != (forward.Traffic{}) {
			t.Fatalf("%v has %+v", mappings[i], got)
		}
	}
	if traffic[n].Total != 1 || traffic[n].Open != 1 {
		t.Errorf("the one that was used has %+v", traffic[n])
	}
	run(t, "nft", "flush ruleset")
	if err := h.Reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, m := range []forward.Mapping{mappings[0], mappings[n-1], m} {
		if got, err := h.Table().Lookup(t.Context(), m.Protocol, m.HostPort); err != nil || got != m.Guest {
			t.Errorf("after a flush %v goes to %v, %v", m, got, err)
		}
	}
	all := append(mappings, m)
	unexpose(t, h, all...)
	if err := h.Table().EndFlows(t.Context(), all...); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "nft", "list", "ruleset"); got != empty {
		t.Errorf("left behind: %d bytes of rules instead of %d", len(got), len(empty))
	}
}

// churnVariable makes the test program one that adds and deletes forwards to the
// guest that it names.
const churnVariable = "SMOLVM_NETWORK_TEST_CHURN"

// churnPorts is how many ports all fight for.
const churnPorts = 8

// churn adds and deletes the same ports' mappings to a guest, from many goroutines. What
// was added must be there until it is deleted.
func churn(h *Host, guest netip.Addr) error {
	const goroutines, rounds = 16, 20
	var wg sync.WaitGroup
	errs := make(chan error, goroutines)
	for g := range goroutines {
		wg.Go(func() {
			for round := range rounds {
				// Each goroutine's guest port is its own, as if it was another guest.
				m := forward.Mapping{
					Protocol: []forward.Protocol{forward.TCP, forward.UDP}[g%2],
					HostPort: uint16(9000 + round%churnPorts), Guest: netip.AddrPortFrom(guest, uint16(1+g)),
				}
				if err := churnOne(h.Table(), m); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

func churnOne(table forward.Table, m forward.Mapping) error {
	ctx := context.Background()
	err := table.Add(ctx, m)
	if errors.Is(err, forward.ErrMapped) {
		return nil
	}
	if err != nil {
		return err
	}
	if at, err := table.Lookup(ctx, m.Protocol, m.HostPort); err != nil || at != m.Guest {
		return errors.Join(err, errors.New("lost "+m.Guest.String()+", found "+at.String()))
	}
	if err := table.Delete(ctx, m); err != nil {
		return err
	}
	return table.EndFlows(ctx, m)
}

func TestProcessesDoNotLoseEachOthersForwards(t *testing.T) {
	h := testHost(t)
	guest := attach(t, h, Attachment{VM: "own"})
	stays := forward.Mapping{Protocol: forward.TCP, HostPort: 8000, Guest: netip.AddrPortFrom(guest.GuestAddr, 80)}
	expose(t, h, stays)
	want := run(t, "nft", "list", "ruleset")
	done := make(chan error)
	for range 3 {
		other := attach(t, h, Attachment{VM: "other"})
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), churnVariable+"="+other.GuestAddr.String())
		cmd.Stderr = t.Output()
		go func() { done <- cmd.Run() }()
	}
	go func() { done <- churn(h, guest.GuestAddr) }()
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if got := run(t, "nft", "list", "ruleset"); got != want {
		t.Errorf("left behind:\n%s", got)
	}
	if n := len(h.wanted.guests); n != 1 {
		t.Errorf("%d mappings are still wanted", n)
	}
}
