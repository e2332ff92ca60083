package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
)

// flushLimit is how many times the kernel is asked to look through its connections
// by itself rather than to list them all once, which takes as long as some twenty of these.
const flushLimit = 16

// forwardedFlows are the connections made through a mapping.
func forwardedFlows(m forward.Mapping) (flows, error) {
	number, ok := protocolNumber(m.Protocol)
	if !ok {
		return flows{}, fmt.Errorf("unknown protocol %q", m.Protocol)
	}
	return flows{protocol: number, to: netip.AddrPortFrom(localhost(), m.HostPort), answers: m.Guest}, nil
}

// endForwards ends the connections made through mappings.
func (h *Host) endForwards(mappings []forward.Mapping) error {
	which := make([]flows, len(mappings))
	for i, m := range mappings {
		var err error
		if which[i], err = forwardedFlows(m); err != nil {
			return fmt.Errorf("end connections: %w", err)
		}
	}
	return h.endFlows(which...)
}

// guestFlows are all connections from and to a guest.
func guestFlows(guest netip.Addr) []flows {
	return []flows{{from: guest}, {answers: netip.AddrPortFrom(guest, 0)}}
}

// endFlows makes the kernel forget connections. What then still comes of them
// matches no rewriting and goes nowhere.
func (h *Host) endFlows(which ...flows) error {
	if len(which) == 0 {
		return nil
	}
	if len(which) <= flushLimit && !h.cannotFlush.Load() {
		err := h.flushFlows(which)
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
		h.cannotFlush.Store(true)
	}
	var limit flows
	if len(which) == 1 {
		limit = which[0]
	}
	all, err := h.listFlows(limit)
	if err != nil {
		return err
	}
	for _, f := range all {
		if err := h.endFlowIfIn(f, which); err != nil {
			return err
		}
	}
	return nil
}

// flushFlows makes the kernel look for the connections itself. Kernels before 6.11
// cannot. They take the request for one to delete a single connection, and refuse
// it with EINVAL, for a connection is not described in full: that the other
// misunderstanding, of deleting all, is impossible is why there always is a
// description of a direction and never a full one.
func (h *Host) flushFlows(which []flows) error {
	for _, w := range which {
		request, err := h.conntrackRequest(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
		if err != nil {
			return err
		}
		request.Data = append(request.Data, w.attributes()...)
		if _, err := request.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
			return fmt.Errorf("end connections: %w", err)
		}
	}
	return nil
}

// listFlows lists connections. The kernel locks each bucket of its table for that,
// which takes about ten milliseconds however empty it is.
func (h *Host) listFlows(which flows) ([]flow, error) {
	request, err := h.conntrackRequest(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	if err != nil {
		return nil, err
	}
	// Kernels before 5.8 take no notice of this and list all.
	if which != (flows{}) {
		request.Data = append(request.Data, which.attributes()...)
	}
	messages, err := request.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	var found []flow
	for _, m := range messages {
		if f, ok := decodeFlow(m); ok && which.contain(f) {
			found = append(found, f)
		}
	}
	return found, nil
}

func (h *Host) endFlowIfIn(f flow, which []flows) error {
	for _, w := range which {
		if !w.contain(f) {
			continue
		}
		return h.endFlow(f)
	}
	return nil
}

// endFlow makes the kernel forget one connection, which may be gone already.
func (h *Host) endFlow(f flow) error {
	request, err := h.conntrackRequest(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
	if err != nil {
		return err
	}
	request.AddRawData(f.entry)
	if _, err := request.Execute(unix.NETLINK_NETFILTER, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("end connection: %w", err)
	}
	return nil
}

// findFlow looks one connection up. It is the zero flow if there is none.
func (h *Host) findFlow(protocol uint8, from, to netip.AddrPort) (flow, error) {
	// The answer says that more follows, which is the acknowledgement only.
	request, err := h.conntrackRequest(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_ACK)
	if err != nil {
		return flow{}, err
	}
	attr, _ := tuple(nl.CTA_TUPLE_ORIG, protocol, from, to)
	request.AddData(attr)
	messages, err := request.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.ENOENT) {
		return flow{}, nil
	}
	if err != nil {
		return flow{}, fmt.Errorf("look up connection: %w", err)
	}
	for _, m := range messages {
		if f, ok := decodeFlow(m); ok && f.from == from && f.to == to {
			return f, nil
		}
	}
	return flow{}, nil
}

func (h *Host) conntrackRequest(operation, flags int) (*nl.NetlinkRequest, error) {
	request, err := h.sockets.request(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	if err != nil {
		return nil, err
	}
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	return request, nil
}

func localhost() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 1}) }
