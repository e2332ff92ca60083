package network

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Reap removes what VMs that are gone have left: their forwards and, when no VM
// remains, everything else, giving the host its former settings back. If VMs
// remain, it also mends the table. It disturbs no VM and is cheap enough to be
// called by every command.
func (h *Host) Reap(ctx context.Context) error {
	err := h.locked(ctx, func(s *state) error {
		_, err := h.reap(s)
		return err
	})
	if err != nil {
		return fmt.Errorf("clean up network: %w", err)
	}
	return nil
}

// reap is Reap under the lock. It returns the addresses of the guests that remain.
func (h *Host) reap(s *state) (alive map[netip.Addr]bool, err error) {
	alive, egress, err := h.guests()
	if err != nil {
		return nil, err
	}
	h.wanted.forgetGuests(func(guest netip.Addr) bool { return h.pool.Contains(guest) && !alive[guest] })
	if len(alive) == 0 {
		if err := s.giveBack(); err != nil {
			return alive, err
		}
		if err := h.sockets.change(removeTables); err != nil {
			return alive, err
		}
		return alive, h.removePoolRoute()
	}
	if err := h.ensureFor(s, egress); err != nil {
		return alive, err
	}
	return alive, h.deleteForwardsTo(func(guest netip.Addr) bool { return h.pool.Contains(guest) && !alive[guest] })
}

// ensure sets up what VMs share, as far as there are VMs that need it.
func (h *Host) ensure(s *state) error {
	_, egress, err := h.guests()
	if err != nil {
		return err
	}
	return h.ensureFor(s, egress)
}

// ensureFor sets up what VMs share: the guards, then the switches.
func (h *Host) ensureFor(s *state, egress bool) error {
	borrowed := s.Borrowed
	if egress {
		var err error
		if borrowed, err = s.wanted(); err != nil {
			return err
		}
	}
	if err := s.borrow(borrowed); err != nil {
		return err
	}
	if err := h.ensureTable(borrowed); err != nil {
		return err
	}
	if err := h.ensurePoolRoute(); err != nil {
		return err
	}
	return s.switchOn()
}

// guests are the addresses of the guests whose interfaces exist, and whether any
// of them may reach the world.
func (h *Host) guests() (alive map[netip.Addr]bool, egress bool, err error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, false, fmt.Errorf("list interfaces: %w", err)
	}
	alive = make(map[netip.Addr]bool)
	for _, link := range links {
		n, ours := slotOf(link.Attrs().Name)
		if !ours || link.Type() != "tuntap" {
			continue
		}
		if _, guest, ok := n.addresses(h.pool); ok {
			alive[guest] = true
			egress = egress || link.Attrs().Group == egressGroup
		}
	}
	return alive, egress, nil
}
