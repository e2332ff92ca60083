package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
)

// table is the forwards of the host's nftables table. Each operation is one
// transaction about one element, so that processes never undo each other's.
type table struct{ host *Host }

// Table returns the kernel's table of forwards.
func (h *Host) Table() forward.Table { return table{h} }

// Add implements forward.Table. If the table is gone, as after a firewall
// reload, it is set up again first, guards and all.
func (t table) Add(ctx context.Context, m forward.Mapping) error {
	element, err := encodeMapping(m)
	if err != nil {
		return err
	}
	err = t.put(element)
	if errors.Is(err, unix.ENOENT) {
		if err := t.host.locked(ctx, t.host.ensure); err != nil {
			return fmt.Errorf("add forward: %w", err)
		}
		err = t.put(element)
	}
	if errors.Is(err, unix.ENOBUFS) {
		// The kernel's answer was lost, not necessarily the element.
		if guest, lookErr := t.Lookup(ctx, m.Protocol, m.HostPort); lookErr == nil && guest == m.Guest {
			return nil
		}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.EBUSY):
		return fmt.Errorf("add forward: %w", forward.ErrMapped)
	}
	return fmt.Errorf("add forward: %w", err)
}

func (t table) put(element nftables.SetElement) error {
	return t.host.sockets.change(func(conn *nftables.Conn) error {
		if err := conn.SetAddElements(mapRef(), []nftables.SetElement{element}); err != nil {
			return err
		}
		return conn.Flush()
	})
}

// Lookup implements forward.Table.
func (t table) Lookup(_ context.Context, protocol forward.Protocol, hostPort uint16) (netip.AddrPort, error) {
	element, err := encodeMapping(forward.Mapping{Protocol: protocol, HostPort: hostPort})
	if err != nil {
		return netip.AddrPort{}, err
	}
	var found []nftables.SetElement
	err = t.host.sockets.change(func(conn *nftables.Conn) error {
		found, err = conn.FindSetElements(mapRef(), []nftables.SetElement{{Key: element.Key}})
		return err
	})
	if errors.Is(err, unix.ENOENT) {
		return netip.AddrPort{}, nil
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("look up forward: %w", err)
	}
	for _, e := range found {
		if m, ok := decodeMapping(e); ok && m.HostPort == hostPort && m.Protocol == protocol {
			return m.Guest, nil
		}
	}
	return netip.AddrPort{}, nil
}

// Delete implements forward.Table. It leaves alone what another guest has put there.
func (t table) Delete(ctx context.Context, m forward.Mapping) error {
	element, err := encodeMapping(m)
	if err != nil {
		return err
	}
	guest, err := t.Lookup(ctx, m.Protocol, m.HostPort)
	if err != nil {
		return err
	}
	if guest != m.Guest {
		return nil
	}
	err = t.host.sockets.change(func(conn *nftables.Conn) error { return deleteElement(conn, element) })
	if err != nil {
		return fmt.Errorf("delete forward: %w", err)
	}
	return nil
}

// EndFlows implements forward.Table.
func (t table) EndFlows(_ context.Context, mappings ...forward.Mapping) error {
	var filters []netlink.CustomConntrackFilter
	for _, m := range mappings {
		number, ok := protocolNumber(m.Protocol)
		if !ok {
			return fmt.Errorf("end connections: unknown protocol %q", m.Protocol)
		}
		filters = append(filters, forwardedFlows{protocol: number, port: m.HostPort})
	}
	if len(filters) == 0 {
		return nil
	}
	return t.host.endFlows(filters...)
}

// deleteElement removes an element, if it is there.
func deleteElement(conn *nftables.Conn, element nftables.SetElement) error {
	if err := conn.SetDeleteElements(mapRef(), []nftables.SetElement{element}); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// deleteForwardsTo removes the elements of guests for which gone is true.
func (h *Host) deleteForwardsTo(gone func(guest netip.Addr) bool) error {
	err := h.sockets.change(func(conn *nftables.Conn) error {
		all, err := conn.GetSetElements(mapRef())
		if err != nil {
			return err
		}
		for _, e := range all {
			m, ok := decodeMapping(e)
			if !ok || !gone(m.Guest.Addr()) {
				continue
			}
			// One by one: an element that its owner removes this moment would
			// otherwise keep the others from being removed.
			if err := deleteElement(conn, nftables.SetElement{Key: e.Key, Val: e.Val}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove dead guests' forwards: %w", err)
	}
	return nil
}

func mapRef() *nftables.Set {
	return forwardsMap(&nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4})
}

func protocolNumber(p forward.Protocol) (uint8, bool) {
	if p == forward.TCP {
		return unix.IPPROTO_TCP, true
	}
	return 0, false
}

// encodeMapping lays a mapping out as the kernel wants it: each field in network
// byte order at the start of a 32-bit word.
func encodeMapping(m forward.Mapping) (nftables.SetElement, error) {
	number, ok := protocolNumber(m.Protocol)
	if !ok {
		return nftables.SetElement{}, fmt.Errorf("forward: unknown protocol %q", m.Protocol)
	}
	key := make([]byte, 8)
	key[0] = number
	binary.BigEndian.PutUint16(key[4:], m.HostPort)
	val := make([]byte, 8)
	if m.Guest.IsValid() {
		if !m.Guest.Addr().Is4() {
			return nftables.SetElement{}, fmt.Errorf("forward: %s is not an IPv4 address", m.Guest.Addr())
		}
		copy(val, m.Guest.Addr().AsSlice())
		binary.BigEndian.PutUint16(val[4:], m.Guest.Port())
	}
	return nftables.SetElement{Key: key, Val: val}, nil
}

func decodeMapping(e nftables.SetElement) (forward.Mapping, bool) {
	if len(e.Key) < 6 || len(e.Val) < 6 || e.Key[0] != unix.IPPROTO_TCP {
		return forward.Mapping{}, false
	}
	return forward.Mapping{
		Protocol: forward.TCP,
		HostPort: binary.BigEndian.Uint16(e.Key[4:]),
		Guest:    netip.AddrPortFrom(netip.AddrFrom4([4]byte(e.Val[:4])), binary.BigEndian.Uint16(e.Val[4:])),
	}, true
}
