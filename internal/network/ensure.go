package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
)

// ensureTable makes the tables what they should be. Tables that are right are left
// alone, but for forwards that are missing; else one transaction replaces all and
// keeps the forwards that it can read.
func (h *Host) ensureTable(borrowed []string) error {
	return h.ensureRuleset(newRuleset(h.pool, hasIPv6()), borrowed)
}

func (h *Host) ensureRuleset(want *ruleset, borrowed []string) error {
	for range tableAttempts {
		err := h.sockets.change(func(conn *nftables.Conn) error { return h.ensureOnce(conn, want, borrowed) })
		if !restarted(err) && !taken(err) {
			return err
		}
	}
	return fmt.Errorf("set up nftables: %w", errKeepsChanging)
}

func (h *Host) ensureOnce(conn *nftables.Conn, want *ruleset, borrowed []string) error {
	generation, err := conn.GetGen()
	if err != nil {
		return fmt.Errorf("read nftables: %w", err)
	}
	found, err := inspect(conn, want)
	if err != nil {
		return fmt.Errorf("read nftables: %w", err)
	}
	missing, lost := h.wanted.compare(found.guests())
	for _, m := range lost {
		h.log.Warn("host port is mapped to another guest, leaving it alone",
			"host_port", m.HostPort, "protocol", m.Protocol, "guest", m.Guest)
	}
	if found.complete {
		if err := setBorrowedTo(conn, borrowedSet(want.tables[0]), found.borrowed(), borrowed); err != nil {
			return err
		}
		return h.restore(conn, append(missing, found.uncounted()...))
	}
	if len(found.tables) > 0 {
		h.log.Warn("firewall table was changed by others or is another version's, replacing it", "table", tableName)
	}
	elements, err := newBatch(missing)
	if err != nil {
		return err
	}
	if err := replace(conn, generation.ID, want, found, found.contents(elements, borrowed)); err != nil {
		return fmt.Errorf("set up nftables: %w", err)
	}
	return nil
}

// restore puts elements that somebody removed back into a table that is right otherwise.
func (h *Host) restore(conn *nftables.Conn, missing []forward.Mapping) error {
	if len(missing) == 0 {
		return nil
	}
	h.log.Warn("forwards were removed by others, putting them back", "number", len(missing))
	elements, err := newBatch(missing)
	if err != nil {
		return err
	}
	if err := elements.add(conn); err != nil {
		return fmt.Errorf("restore forwards: %w", err)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("restore forwards: %w", err)
	}
	return nil
}

// restarted tells whether a transaction was refused, or perhaps not noticed,
// because of others; the table has to be looked at again.
func restarted(err error) bool {
	return errors.Is(err, unix.ERESTART) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR)
}

// hasIPv6 tells whether this kernel speaks IPv6.
func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return !errors.Is(err, fs.ErrNotExist)
}

// contents are what the sets of a new table have in them, by set: what was found,
// with its counts, and what was missing.
func (found *inspection) contents(missing batch, borrowed []string) map[string][]nftables.SetElement {
	all := map[string][]nftables.SetElement{setBorrowed: ifnameElements(borrowed)}
	for _, e := range found.elements[mapName] {
		all[mapName] = append(all[mapName], nftables.SetElement{Key: e.Key, Val: e.Val, Counter: e.Counter})
	}
	all[mapName] = append(all[mapName], missing.mapped...)
	for _, set := range countingSets() {
		counts := make(map[string]*expr.Counter)
		for _, e := range found.elements[set] {
			counts[string(e.Key)] = e.Counter
		}
		for _, e := range all[mapName] {
			all[set] = append(all[set], nftables.SetElement{Key: e.Key, Counter: counts[string(e.Key)]})
		}
	}
	return all
}

// replace puts the wanted tables in place of what was found, in one
// transaction that the kernel refuses if anything changed since the inspection.
func replace(conn *nftables.Conn, generation uint32, want *ruleset, found *inspection, contents map[string][]nftables.SetElement) error {
	for _, t := range found.tables {
		conn.DelTable(t)
	}
	for _, t := range want.tables {
		conn.AddTable(t)
	}
	for _, s := range want.sets {
		if err := conn.AddSet(s, contents[s.Name]); err != nil {
			return err
		}
	}
	for _, c := range want.chains {
		conn.AddChain(c)
	}
	for _, r := range want.rules {
		conn.AddRule(r)
	}
	return conn.FlushWithGenID(generation)
}

func ifnameElements(names []string) []nftables.SetElement {
	elements := make([]nftables.SetElement, len(names))
	for i, name := range names {
		elements[i].Key = ifnameKey(name)
	}
	return elements
}

// setBorrowedTo brings the set of interfaces that forward for guests only up to date.
func setBorrowedTo(conn *nftables.Conn, set *nftables.Set, have, want []string) error {
	have, want = slices.Sorted(slices.Values(have)), slices.Sorted(slices.Values(want))
	if slices.Equal(have, want) {
		return nil
	}
	conn.FlushSet(set)
	if err := conn.SetAddElements(set, ifnameElements(want)); err != nil {
		return fmt.Errorf("guard forwarding: %w", err)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("guard forwarding: %w", err)
	}
	return nil
}

// removeTables takes away all that newRuleset describes.
func removeTables(conn *nftables.Conn) error {
	found, err := tables(conn)
	if err != nil || len(found) == 0 {
		return err
	}
	for _, t := range found {
		conn.DelTable(t)
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove nftables: %w", err)
	}
	return nil
}
