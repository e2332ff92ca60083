package network

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/smolvm/smolvm/internal/forward"
)

// Adopt returns the interface that Attach made in a process that died since, while the
// VM's monitor keeps it alive. All that was forwarded to the guest is forwarded still.
// The caller must Close the Interface.
func (h *Host) Adopt(ctx context.Context, name string, index int, a Attachment) (*Interface, error) {
	n, ok := slotOf(name)
	if !ok {
		return nil, fmt.Errorf("adopt interface: %q is not the name of one", name)
	}
	hostAddr, guestAddr, ok := n.addresses(h.pool)
	if !ok {
		return nil, fmt.Errorf("adopt interface: %s has no address in %s", name, h.pool)
	}
	i := &Interface{
		Name: name, Index: index, HostAddr: hostAddr, GuestAddr: guestAddr, GuestMAC: n.mac(),
		host: h, vm: a.VM, egress: a.Egress,
	}
	release, err := h.reconciler.begin(h)
	if err != nil {
		return nil, fmt.Errorf("adopt interface: %w", err)
	}
	err = h.locked(ctx, func(s *state) error {
		link, err := netlink.LinkByIndex(index)
		switch {
		case err != nil:
			return fmt.Errorf("look up interface %s: %w", name, err)
		case link.Type() != "tuntap":
			return fmt.Errorf("interface %d is no TAP but %s %s", index, link.Type(), link.Attrs().Name)
		}
		if i.MTU = link.Attrs().MTU; a.MTU != 0 {
			i.MTU = a.MTU
		}
		if err := h.ensureFor(s, a.Egress); err != nil {
			return err
		}
		// What was changed while nobody looked after it is mended.
		if _, err := i.mark(link); err != nil {
			return err
		}
		if _, err := i.arrange(link); err != nil {
			return err
		}
		i.release = release
		h.reconciler.keep(i)
		return nil
	})
	if err != nil {
		release()
		return nil, fmt.Errorf("adopt interface: %w", err)
	}
	h.log.Debug("adopted interface", "vm", a.VM, "interface", i.Name, "guest", i.GuestAddr)
	return i, nil
}

// ForgetForwards ends the forwards to the guest for which stale is true, with their
// connections: those that a former owner made and nobody knows of any more.
func (i *Interface) ForgetForwards(ctx context.Context, stale func(forward.Mapping) bool) error {
	var ended []forward.Mapping
	err := i.host.locked(ctx, func(*state) error {
		return i.host.deleteForwards(func(m forward.Mapping) bool {
			if m.Guest.Addr() != i.GuestAddr || !stale(m) {
				return false
			}
			ended = append(ended, m)
			return true
		})
	})
	if err == nil && len(ended) > 0 {
		err = i.host.Table().EndFlows(ctx, ended...)
	}
	if err != nil {
		return fmt.Errorf("forget forwards: %w", err)
	}
	return nil
}
