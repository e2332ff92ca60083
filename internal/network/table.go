package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
)

// tableAttempts is how often a change is begun anew because somebody else's came
// between it and what it was found to depend on.
const tableAttempts = 20

var errKeepsChanging = errors.New("the firewall's rules keep changing")

// table is the forwards of the host's nftables table. Each operation is one
// transaction about its own elements, so that processes never undo each other's.
type table struct{ host *Host }

// Table returns the kernel's table of forwards.
func (h *Host) Table() forward.Table { return table{h} }

// Add implements forward.Table. If the table is gone, as after a firewall
// reload, it is set up again first, guards and all.
func (t table) Add(ctx context.Context, mappings ...forward.Mapping) error {
	if twice, ok := conflict(mappings); ok {
		return fmt.Errorf("add forward: %w", &forward.MappedError{Mapping: twice})
	}
	elements, err := newBatch(mappings)
	if err != nil {
		return err
	}
	t.host.flusher.wait(mappings)
	for range tableAttempts {
		err := t.put(elements, mappings)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.ENOENT):
			err = t.host.locked(ctx, t.host.ensure)
		case taken(err):
			err = t.explain(mappings)
		case restarted(err):
			err = nil
		}
		if err != nil {
			return fmt.Errorf("add forward: %w", err)
		}
	}
	return fmt.Errorf("add forward: %w", errKeepsChanging)
}

// taken tells whether a transaction was refused because of an element that leads
// elsewhere. The kernel says the same while it makes room for more elements.
func taken(err error) bool { return errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) }

// put adds elements, and from then on the mappings are wanted.
func (t table) put(elements batch, mappings []forward.Mapping) error {
	return t.host.sockets.change(func(conn *nftables.Conn) error {
		if err := elements.add(conn); err != nil {
			return err
		}
		if err := conn.Flush(); err != nil {
			return err
		}
		t.host.wanted.add(mappings)
		return nil
	})
}

// conflict finds a mapping whose port another one of them maps elsewhere.
func conflict(mappings []forward.Mapping) (forward.Mapping, bool) {
	guests := make(map[port]netip.AddrPort, len(mappings))
	for _, m := range mappings {
		if other, ok := guests[portOf(m)]; ok && other != m.Guest {
			return m, true
		}
		guests[portOf(m)] = m.Guest
	}
	return forward.Mapping{}, false
}

// explain returns a *forward.MappedError about the first mapping whose port leads elsewhere.
// It is nil if there is none any more.
func (t table) explain(mappings []forward.Mapping) error {
	_, others, err := t.split(mappings)
	if err != nil || len(others) == 0 {
		return err
	}
	return &forward.MappedError{Mapping: others[0]}
}

// split tells mappings that are in the table from those whose port leads elsewhere.
// What is not there is in neither.
func (t table) split(mappings []forward.Mapping) (there, others []forward.Mapping, err error) {
	at, err := t.read(mappings)
	if err != nil {
		return nil, nil, err
	}
	for _, m := range mappings {
		switch at[portOf(m)] {
		case m.Guest:
			there = append(there, m)
		case netip.AddrPort{}:
		default:
			others = append(others, m)
		}
	}
	return there, others, nil
}

// read returns where the ports of mappings lead to.
func (t table) read(mappings []forward.Mapping) (map[port]netip.AddrPort, error) {
	ports := make([]port, len(mappings))
	for i, m := range mappings {
		ports[i] = portOf(m)
	}
	guests := make(map[port]netip.AddrPort, len(mappings))
	err := t.host.sockets.change(func(conn *nftables.Conn) error {
		found, err := readElements(conn, setRef(forwardsMap), ports)
		for p, e := range found {
			if m, ok := decodeMapping(e); ok {
				guests[p] = m.Guest
			}
		}
		return err
	})
	return guests, err
}

// Lookup implements forward.Table.
func (t table) Lookup(_ context.Context, protocol forward.Protocol, hostPort uint16) (netip.AddrPort, error) {
	m := forward.Mapping{Protocol: protocol, HostPort: hostPort}
	guests, err := t.read([]forward.Mapping{m})
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("look up forward: %w", err)
	}
	return guests[portOf(m)], nil
}

// Delete implements forward.Table. It leaves alone what another guest has put there.
func (t table) Delete(ctx context.Context, mappings ...forward.Mapping) error {
	t.host.wanted.forget(mappings)
	// Another version's table, with these forwards in it, is made ours first.
	err := t.remove(mappings, func() error { return t.host.locked(ctx, t.host.ensure) })
	if err != nil {
		t.host.wanted.add(mappings)
		return fmt.Errorf("delete forward: %w", err)
	}
	return nil
}

// remove takes mappings out. It calls mend if there are some in a table that is
// not as it should be.
func (t table) remove(mappings []forward.Mapping, mend func() error) error {
	for range tableAttempts {
		err := t.drop(mappings)
		gone := errors.Is(err, unix.ENOENT)
		switch {
		case err == nil:
			return nil
		case gone, taken(err):
			if mappings, _, err = t.split(mappings); err != nil || len(mappings) == 0 {
				return err
			}
		case !restarted(err):
			return err
		}
		if gone {
			if err := mend(); err != nil {
				return err
			}
		}
	}
	return errKeepsChanging
}

func (t table) drop(mappings []forward.Mapping) error {
	elements, err := newBatch(mappings)
	if err != nil {
		return err
	}
	return t.host.sockets.change(func(conn *nftables.Conn) error {
		if err := elements.remove(conn); err != nil {
			return err
		}
		return conn.Flush()
	})
}

// EndFlows implements forward.Table. When it returns, nothing of what was open reaches
// the guest any more. What the kernel still remembers of TCP connections that were closed
// before, and that no later one can be taken for, it forgets a moment later.
func (t table) EndFlows(_ context.Context, mappings ...forward.Mapping) error {
	var now, soon []forward.Mapping
	for _, m := range mappings {
		if m.Protocol == forward.TCP {
			soon = append(soon, m)
		} else {
			now = append(now, m)
		}
	}
	// Clients come first: the reset that they send reaches the guest through the
	// connection that is then forgotten.
	all, err := t.host.abortClients(soon)
	if err != nil {
		return err
	}
	if !all {
		now, soon = mappings, nil
	}
	if err := t.host.endForwards(now); err != nil {
		return err
	}
	if len(soon) > 0 {
		t.host.flusher.add(soon, func(mappings []forward.Mapping) {
			if err := t.host.endForwards(mappings); err != nil {
				t.host.log.Warn("the kernel may remember connections that were closed for a while", "error", err)
			}
		})
	}
	return nil
}

// deleteForwardsTo removes the forwards to guests for which gone is true. The table
// was made sure of before.
func (h *Host) deleteForwardsTo(gone func(guest netip.Addr) bool) error {
	h.wanted.forgetGuests(gone)
	return h.deleteForwards(func(m forward.Mapping) bool { return gone(m.Guest.Addr()) })
}

// deleteForwards removes the forwards for which dead is true.
func (h *Host) deleteForwards(dead func(forward.Mapping) bool) error {
	var doomed []forward.Mapping
	err := h.sockets.change(func(conn *nftables.Conn) error {
		all, err := conn.GetSetElements(setRef(forwardsMap))
		for _, e := range all {
			if m, ok := decodeMapping(e); ok && dead(m) {
				doomed = append(doomed, m)
			}
		}
		return err
	})
	if err == nil && len(doomed) > 0 {
		err = table{h}.remove(doomed, func() error { return nil })
	}
	if err != nil {
		return fmt.Errorf("remove dead forwards: %w", err)
	}
	return nil
}
