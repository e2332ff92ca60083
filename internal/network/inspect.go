package network

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
)

// inspection is what of a ruleset is in the kernel.
type inspection struct {
	complete bool
	tables   []*nftables.Table
	elements map[string][]nftables.SetElement // by set, of those that are as wanted
}

// borrowed are the interfaces that forward for guests only.
func (found *inspection) borrowed() []string {
	var names []string
	for _, e := range found.elements[setBorrowed] {
		names = append(names, string(bytes.TrimRight(e.Key, "\x00")))
	}
	return names
}

// guests are where the map leads.
func (found *inspection) guests() map[port]netip.AddrPort {
	guests := make(map[port]netip.AddrPort)
	for _, e := range found.elements[mapName] {
		if m, ok := decodeMapping(e); ok {
			guests[portOf(m)] = m.Guest
		}
	}
	return guests
}

// uncounted are the mappings whose bytes nobody counts.
func (found *inspection) uncounted() []forward.Mapping {
	counters := make(map[string]int)
	for _, set := range countingSets() {
		for _, e := range found.elements[set] {
			counters[string(e.Key)]++
		}
	}
	var lacking []forward.Mapping
	for _, e := range found.elements[mapName] {
		if m, ok := decodeMapping(e); ok && counters[string(e.Key)] < len(countingSets()) {
			lacking = append(lacking, m)
		}
	}
	return lacking
}

func countingSets() []string { return []string{setToGuests, setFromGuests} }

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
	found := &inspection{elements: make(map[string][]nftables.SetElement)}
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
		found.elements[w.Name] = elements
		if w.Counter && slices.ContainsFunc(elements, func(e nftables.SetElement) bool { return e.Counter == nil }) {
			good = false
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
