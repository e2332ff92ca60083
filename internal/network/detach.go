package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Detach removes the interface of a VM whose owner died, if it is still there, and
// what depends on it. An interface goes when its monitor does; Detach is for
// whoever cannot wait for that. An interface of the same index but another name
// is somebody else's and is left alone.
func (h *Host) Detach(ctx context.Context, name string, index int) error {
	n, ours := slotOf(name)
	if !ours {
		return nil
	}
	_, guest, _ := n.addresses(h.pool)
	if err := h.detach(ctx, name, index, guest); err != nil {
		return fmt.Errorf("detach VM from network: %w", err)
	}
	return nil
}

// detach removes an interface, and what depends on it and on its guest's address.
func (h *Host) detach(ctx context.Context, name string, index int, guest netip.Addr) error {
	// The kernel waits until nobody looks at the interface any more. That takes 20 ms on an idle
	// host, for one or for a hundred at once, so nobody else waits for it.
	if err := deleteInterface(name, index); err != nil {
		return err
	}
	return h.locked(ctx, func(s *state) error {
		alive, err := h.reap(s)
		if err != nil || alive[guest] {
			return err // the address is another VM's by now, which saw to it
		}
		return h.endFlows(guestFlows(guest)...)
	})
}

func deleteInterface(name string, index int) error {
	link, err := netlink.LinkByIndex(index)
	var notFound netlink.LinkNotFoundError
	switch {
	case errors.As(err, &notFound):
		return nil
	case err != nil:
		return fmt.Errorf("look up interface %s: %w", name, err)
	case link.Attrs().Name != name || link.Type() != "tuntap":
		return nil
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}
