package network

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/network/nettest"
)

// crowd are owners of a VM each, as if each were a process of its own. They have one log.
type crowd struct {
	t          *testing.T
	hosts      []*Host
	interfaces []*Interface
	log        nettest.Log
}

func newCrowd(t *testing.T, n int) *crowd {
	t.Helper()
	c := &crowd{t: t}
	dir := testHost(t).dir
	level := slog.HandlerOptions{Level: slog.LevelDebug}
	for n := range n {
		h := NewHost(Options{RuntimeDir: dir, Log: slog.New(slog.NewTextHandler(io.MultiWriter(&c.log, t.Output()), &level))})
		t.Cleanup(func() { must(t, h.Close()) })
		i := attach(t, h, Attachment{VM: fmt.Sprint("vm-", n), Egress: true})
		c.hosts, c.interfaces = append(c.hosts, h), append(c.interfaces, i)
		expose(t, h, c.mapping(n))
	}
	return c
}

func (c *crowd) mapping(n int) forward.Mapping {
	return forward.Mapping{Protocol: forward.TCP, HostPort: uint16(8000 + n), Guest: netip.AddrPortFrom(c.interfaces[n].GuestAddr, 80)}
}

// work counts how often anybody looked at everything, or at all but its own, under the lock.
func (c *crowd) work() int {
	return c.log.Count("looking at the network") + c.log.Count("removing what VMs have left")
}

// calm waits until nobody looks any more: the kernel has a last word about new interfaces.
func (c *crowd) calm() {
	c.t.Helper()
	wait(c.t, "nobody looks", func() bool {
		before := c.work()
		rest()
		return c.work() == before
	})
}

// settle waits until all but the first n owners have seen to what they were told.
func (c *crowd) settle(n int) {
	c.t.Helper()
	for _, h := range c.hosts[n:] {
		settle(c.t, h)
	}
}

// TestCrowdEnds ends VMs one by one, each one's monitor first. Its owner need not look after what
// is there no more, and neither need all others see what it has left, which is nothing: with so
// many looks whoever closes an interface would wait for the lock for longer than it may.
func TestCrowdEnds(t *testing.T) {
	const n = 10
	c := newCrowd(t, n)
	c.calm()
	before := c.work()
	for k := range n - 1 {
		h, i := c.hosts[k], c.interfaces[k]
		unexpose(t, h, c.mapping(k))
		must(t, i.file.Close())
		wait(t, "the loss is noticed", func() bool {
			h.reconciler.mu.Lock()
			defer h.reconciler.mu.Unlock()
			_, noticed := h.reconciler.missing[i]
			return noticed
		})
		must(t, i.Close())
		c.settle(k + 1)
	}
	// A host that is very busy may take an interface's end for its loss now and then.
	if looks := c.work() - before; looks > n/2 {
		t.Errorf("%d VMs ended, and owners looked %d times", n-1, looks)
	}
}

// TestCrowdBuriesOnce has one of many owners die. What it left is removed by the first
// of the others, and not looked for by the rest.
func TestCrowdBuriesOnce(t *testing.T) {
	const n = 10
	c := newCrowd(t, n)
	c.calm()
	before := c.work()
	unattended(c.hosts[0])
	must(t, c.interfaces[0].file.Close())
	wait(t, "the dead owner's forward is gone", func() bool {
		guest, err := c.hosts[1].Table().Lookup(t.Context(), forward.TCP, c.mapping(0).HostPort)
		must(t, err)
		return !guest.IsValid()
	})
	c.settle(1)
	if work := c.work() - before; work == 0 || work > n/2 {
		t.Errorf("%d owners did the work of one %d times", n-1, work)
	}
}
