package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// bereft tells whether all interfaces that this process keeps are gone, as is so for a moment when
// its VM has ended. Then there is nothing to look after: the owner is about to close them, and
// what others need they look after themselves.
func (r *reconciler) bereft() bool {
	r.mu.Lock()
	kept := r.kept
	r.mu.Unlock()
	for _, i := range kept {
		if _, err := netlink.LinkByIndex(i.Index); !errors.As(err, new(netlink.LinkNotFoundError)) {
			return false
		}
	}
	givenUp := false
	for _, i := range kept {
		givenUp = r.lose(i) || givenUp
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// When an interface was given up there is a look: if it was the last one all is removed.
	if len(kept) == 0 || givenUp || !slices.Equal(kept, r.kept) {
		return false
	}
	r.pending, r.interests.corpses = 0, nil
	return true
}

// lose is told again and again that an interface is gone without having been closed, and
// gives it up after a while: when a VM ends, its monitor's TAP goes a moment before the
// owner gets to closing it.
func (r *reconciler) lose(i *Interface) (givenUp bool) {
	r.mu.Lock()
	since, known := r.missing[i]
	if !known {
		since = time.Now()
		r.missing[i] = since
	}
	r.mu.Unlock()
	if !known {
		// The address may be another guest's soon.
		i.host.wanted.forgetGuests(func(guest netip.Addr) bool { return guest == i.GuestAddr })
	}
	if time.Since(since) < goneAfter {
		return false
	}
	r.forget(i)
	i.host.log.Error("a VM's network interface is gone; the VM has no network until it starts anew",
		"vm", i.vm, "interface", i.Name)
	return true
}

// bury removes what other owners' guests that are gone have left. Mostly that is nothing, for
// their owners remove it; else the first process that has the lock does it for all.
func (r *reconciler) bury(ctx context.Context, h *Host) error {
	r.mu.Lock()
	corpses := r.interests.corpses
	r.interests.corpses = nil
	r.mu.Unlock()
	if h.forwardsTo(corpses) {
		err := h.locked(ctx, func(s *state) error {
			if !h.forwardsTo(corpses) {
				return nil
			}
			h.log.Debug("removing what VMs have left")
			_, err := h.reap(s)
			return err
		})
		if err != nil {
			return fmt.Errorf("remove what VMs have left: %w", err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.interests.corpses == nil {
		r.pending &^= corpseEvent
	}
	return nil
}

// forwardsTo tells whether there are forwards to any of the guests, or may be.
func (h *Host) forwardsTo(guests map[netip.Addr]bool) bool {
	found := false
	err := h.sockets.change(func(conn *nftables.Conn) error {
		all, err := conn.GetSetElements(setRef(forwardsMap))
		found = slices.ContainsFunc(all, func(e nftables.SetElement) bool {
			m, ok := decodeMapping(e)
			return ok && guests[m.Guest.Addr()]
		})
		return err
	})
	return found || err != nil
}
