package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// replaceAttempts is how often a replacement is begun anew because somebody changed
// some firewall rule meanwhile.
const replaceAttempts = 20

// ensureTable makes the tables what they should be. Tables that are right are left
// alone; else one transaction replaces all and keeps the forwards that it can read.
func (h *Host) ensureTable(borrowed []string) error {
	want := newRuleset(h.pool, hasIPv6())
	for range replaceAttempts {
		err := h.sockets.change(func(conn *nftables.Conn) error { return h.ensureOnce(conn, want, borrowed) })
		if !restarted(err) {
			return err
		}
	}
	return errors.New("set up nftables: the firewall's rules keep changing")
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
	if found.complete {
		return setBorrowedTo(conn, want.sets[1], found.borrowed, borrowed)
	}
	if len(found.tables) > 0 {
		h.log.Warn("firewall table was changed by others or is another version's, replacing it", "table", tableName)
	}
	if err := replace(conn, generation.ID, want, found, borrowed); err != nil {
		return fmt.Errorf("set up nftables: %w", err)
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

// inspection is what of a ruleset is in the kernel.
type inspection struct {
	complete bool
	tables   []*nftables.Table
	forwards []nftables.SetElement
	borrowed []string
}

// tables lists all tables called smolvm.
func tables(conn *nftables.Conn) ([]*nftables.Table, error) {
	all, err := conn.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list nftables: %w", err)
	}
	return slices.DeleteFunc(all, func(t *nftables.Table) bool {
		return t.Name != tableName || (t.Family != nftables.TableFamilyIPv4 && t.Family != nftables.TableFamilyIPv6)
	}), nil
}

// inspect compares the kernel's tables with want.
func inspect(conn *nftables.Conn, want *ruleset) (*inspection, error) {
	found := &inspection{}
	var err error
	if found.tables, err = tables(conn); err != nil {
		return nil, err
	}
	if len(found.tables) == 0 {
		return found, nil
	}
	good, err := found.sets(conn, want)
	if err != nil {
		return nil, err
	}
	if !good || len(found.tables) != len(want.tables) {
		return found, nil
	}
	for _, t := range found.tables {
		if t.Flags != 0 {
			return found, nil // dormant: it does nothing
		}
	}
	found.complete, err = sameChains(conn, want)
	return found, err
}

// sets reads the sets' contents and tells whether the sets are as wanted.
func (found *inspection) sets(conn *nftables.Conn, want *ruleset) (bool, error) {
	have, err := conn.GetSets(want.tables[0])
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return false, err
	}
	good := len(have) == len(want.sets)
	for _, w := range want.sets {
		i := slices.IndexFunc(have, func(s *nftables.Set) bool { return s.Name == w.Name })
		if i < 0 {
			good = false
			continue
		}
		s := have[i]
		if s.IsMap != w.IsMap || s.KeyType != w.KeyType || s.DataType != w.DataType {
			good = false
			continue
		}
		elements, err := conn.GetSetElements(w)
		if err != nil {
			return false, err
		}
		if w.IsMap {
			found.forwards = elements
			continue
		}
		for _, e := range elements {
			found.borrowed = append(found.borrowed, string(bytes.TrimRight(e.Key, "\x00")))
		}
	}
	return good, nil
}

// sameChains compares chains and their rules, to the last expression.
func sameChains(conn *nftables.Conn, want *ruleset) (bool, error) {
	all, err := conn.ListChains()
	if err != nil {
		return false, err
	}
	have := make(map[string]*nftables.Chain)
	for _, c := range all {
		if c.Table.Name == tableName && slices.ContainsFunc(want.tables, func(t *nftables.Table) bool { return t.Family == c.Table.Family }) {
			have[chainKey(c)] = c
		}
	}
	if len(have) != len(want.chains) {
		return false, nil
	}
	for _, w := range want.chains {
		c := have[chainKey(w)]
		if c == nil || c.Type != w.Type || c.Hooknum == nil || *c.Hooknum != *w.Hooknum ||
			c.Priority == nil || *c.Priority != *w.Priority || c.Policy == nil || *c.Policy != *w.Policy {
			return false, nil
		}
		rules, err := conn.GetRules(w.Table, w)
		if err != nil {
			return false, err
		}
		if !slices.EqualFunc(rules, want.rulesOf(w), sameRule) {
			return false, nil
		}
	}
	return true, nil
}

func chainKey(c *nftables.Chain) string { return fmt.Sprint(c.Table.Family, c.Name) }

func (rs *ruleset) rulesOf(c *nftables.Chain) []*nftables.Rule {
	var rules []*nftables.Rule
	for _, r := range rs.rules {
		if r.Chain == c {
			rules = append(rules, r)
		}
	}
	return rules
}

func sameRule(a, b *nftables.Rule) bool {
	commentA, _ := userdata.GetString(a.UserData, userdata.TypeComment)
	commentB, _ := userdata.GetString(b.UserData, userdata.TypeComment)
	return commentA == commentB && slices.EqualFunc(a.Exprs, b.Exprs, func(x, y expr.Any) bool {
		return bytes.Equal(encode(a.Table.Family, x), encode(a.Table.Family, y))
	})
}

// encode is an expression as the kernel would get it, without what holds in one
// transaction only.
func encode(family nftables.TableFamily, e expr.Any) []byte {
	if lookup, ok := e.(*expr.Lookup); ok {
		clean := *lookup
		clean.SetID = 0
		e = &clean
	}
	b, err := expr.Marshal(byte(family), e)
	if err != nil {
		return nil
	}
	return b
}

// replace puts the wanted tables in place of what was found, in one
// transaction that the kernel refuses if anything changed since the inspection.
func replace(conn *nftables.Conn, generation uint32, want *ruleset, found *inspection, borrowed []string) error {
	for _, t := range found.tables {
		conn.DelTable(t)
	}
	for _, t := range want.tables {
		conn.AddTable(t)
	}
	for _, s := range want.sets {
		var elements []nftables.SetElement
		if s.IsMap {
			elements = found.forwards
		} else {
			elements = ifnameElements(borrowed)
		}
		if err := conn.AddSet(s, elements); err != nil {
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
