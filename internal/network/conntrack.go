package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forwardedFlows matches the connections to one port of 127.0.0.1.
type forwardedFlows struct {
	protocol uint8
	port     uint16
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f forwardedFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to := flow.Forward
	return to.Protocol == f.protocol && to.DstPort == f.port && to.DstIP.Equal([]byte{127, 0, 0, 1})
}

// guestFlows matches all connections from and to a guest.
type guestFlows struct{ guest netip.Addr }

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f guestFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	guest := f.guest.AsSlice()
	return flow.Forward.SrcIP.Equal(guest) || flow.Reverse.SrcIP.Equal(guest)
}

// endFlows makes the kernel forget connections. What then still comes of them
// matches no rewriting and goes nowhere. The kernel has to be asked for its whole
// table, which takes about ten milliseconds however small it is.
func (h *Host) endFlows(filters ...netlink.CustomConntrackFilter) error {
	handle, err := h.sockets.conntrack()
	if err != nil {
		return err
	}
	for {
		_, err := handle.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filters...)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, netlink.ErrDumpInterrupted), errors.Is(err, unix.ENOENT):
			continue // others change the table too, and flows end by themselves
		}
		return fmt.Errorf("end connections: %w", err)
	}
}
