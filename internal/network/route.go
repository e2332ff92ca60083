package network

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// routeProtocol marks our routes as ours.
	routeProtocol = 115
	// routeMetric is below that of any route somebody else may have for the pool.
	routeMetric = 1 << 30
)

// poolRoute lets packets for a guest that is gone fail at once instead of leaving
// by the default route.
func (h *Host) poolRoute() *netlink.Route {
	return &netlink.Route{
		Dst:      &net.IPNet{IP: h.pool.Addr().AsSlice(), Mask: net.CIDRMask(h.pool.Bits(), 32)},
		Type:     unix.RTN_UNREACHABLE,
		Protocol: routeProtocol,
		Priority: routeMetric,
		Table:    unix.RT_TABLE_MAIN,
	}
}

func (h *Host) ensurePoolRoute() error {
	if err := netlink.RouteAdd(h.poolRoute()); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add route for address pool: %w", err)
	}
	return nil
}

func (h *Host) removePoolRoute() error {
	if err := netlink.RouteDel(h.poolRoute()); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route for address pool: %w", err)
	}
	return nil
}
