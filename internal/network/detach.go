package network

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Detach removes the interface of a VM whose owner died, if it is still there, and
// what depends on it. An interface goes when its monitor does; Detach is for
// whoever cannot wait for that. An interface of the same index but another name
// is somebody else's and is left alone.
func (h *Host) Detach(ctx context.Context, name string, index int) error {
	err := h.locked(ctx, func(s *state) error {
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
		return h.reap(s)
	})
	if err != nil {
		return fmt.Errorf("detach VM from network: %w", err)
	}
	return nil
}
