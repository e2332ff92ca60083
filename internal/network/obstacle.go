package network

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Obstacle is a chain of somebody else's that stops packets of VMs.
type Obstacle struct {
	Family string // as the nft program writes it: inet, ip
	Table  string
	Chain  string
	Hook   string // input, output, forward, prerouting or postrouting
	Reason string // how it drops packets: by its policy, or by a rule
	Stops  Traffic
	// Unsure is set if a rule that cannot be judged may let the packets through after all.
	Unsure bool
	// Advice is a command that lets them through.
	Advice string
}

// Traffic is a kind of packets of VMs.
type Traffic string

const (
	// Forwards are connections from this host to exposed ports.
	Forwards Traffic = "forwards"
	// Egress are connections from guests to the world.
	Egress Traffic = "guests' way to the world"
)

func (o Obstacle) String() string {
	verb := "stops"
	if o.Unsure {
		verb = "may stop"
	}
	return fmt.Sprintf("table %s %s, chain %s (%s) %s %s: %s", o.Family, o.Table, o.Chain, o.Hook, verb, o.Stops, o.Reason)
}

// Obstacles lists the chains of nftables that stop what VMs need, or may. It changes
// nothing and sends nothing: it follows packets through the rules as they
// are written. Rules of legacy iptables it cannot see.
func (h *Host) Obstacles(ctx context.Context) ([]Obstacle, error) {
	var found []Obstacle
	err := h.sockets.change(func(conn *nftables.Conn) error {
		chains, err := conn.ListChains()
		if err != nil {
			return err
		}
		awake, err := awakeTables(conn)
		if err != nil {
			return err
		}
		for _, c := range chains {
			if err := ctx.Err(); err != nil {
				return err
			}
			if c.Hooknum == nil || c.Priority == nil || !awake[*c.Table] {
				continue
			}
			obstacles, err := h.obstaclesIn(conn, c, chains)
			if errors.Is(err, unix.ENOENT) {
				continue // went this moment
			}
			if err != nil {
				return err
			}
			found = append(found, obstacles...)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for obstacles in nftables: %w", err)
	}
	return found, nil
}

// awakeTables are others' tables that see IPv4, except those that are switched off.
func awakeTables(conn *nftables.Conn) (map[nftables.Table]bool, error) {
	tables, err := conn.ListTables()
	if err != nil {
		return nil, err
	}
	awake := make(map[nftables.Table]bool)
	for _, t := range tables {
		ipv4 := t.Family == nftables.TableFamilyIPv4 || t.Family == nftables.TableFamilyINet
		ours := t.Family == nftables.TableFamilyIPv4 && (t.Name == tableName || strings.HasPrefix(t.Name, tracePrefix))
		if ipv4 && !ours && t.Flags&nftables.TableFlagDormant == 0 {
			awake[nftables.Table{Name: t.Name, Family: t.Family}] = true
		}
	}
	return awake, nil
}

// obstaclesIn sends packets of each kind through a base chain.
func (h *Host) obstaclesIn(conn *nftables.Conn, base *nftables.Chain, chains []*nftables.Chain) ([]Obstacle, error) {
	hook, ok := hookNames()[*base.Hooknum]
	if !ok {
		return nil, nil
	}
	rules := make(map[string][]*nftables.Rule)
	for _, c := range chains {
		if *c.Table != *base.Table {
			continue
		}
		found, err := conn.GetRules(c.Table, c)
		if err != nil {
			return nil, err
		}
		rules[c.Name] = found
	}
	var obstacles []Obstacle
	for _, s := range h.samples(*base.Hooknum, *base.Priority) {
		f, unsure := s.packet.fateIn(base.Name, rules, 0)
		reason := "a rule drops them"
		if f == goesOn || f == returned {
			if base.Policy == nil || *base.Policy != nftables.ChainPolicyDrop {
				continue
			}
			reason = "policy drop"
		} else if f == accepted {
			continue
		}
		family := familyName(base.Table.Family)
		obstacles = append(obstacles, Obstacle{
			Family: family, Table: base.Table.Name, Chain: base.Name, Hook: hook, Reason: reason, Stops: s.kind, Unsure: unsure,
			Advice: fmt.Sprintf("nft insert rule %s %s %s %s accept", family, base.Table.Name, base.Name, s.match),
		})
	}
	return obstacles, nil
}

func hookNames() map[nftables.ChainHook]string {
	return map[nftables.ChainHook]string{
		*nftables.ChainHookPrerouting:  "prerouting",
		*nftables.ChainHookInput:       "input",
		*nftables.ChainHookForward:     "forward",
		*nftables.ChainHookOutput:      "output",
		*nftables.ChainHookPostrouting: "postrouting",
	}
}

// sample is a packet that VMs need to get through, and how a rule matches it.
type sample struct {
	kind   Traffic
	packet probe
	match  string
}

// samples are the packets that come by a hook at a priority. They are those of the first
// guest; its uplink is not known.
func (h *Host) samples(hook nftables.ChainHook, priority nftables.ChainPriority) []sample {
	const guestLink, fromGuests, toGuests = interfacePrefix + "0", `iifname "` + interfacePrefix + `*"`, `oifname "` + interfacePrefix + `*"`
	own, guest, _ := slot(0).addresses(h.pool)
	opening, later := expr.CtStateBitNEW, expr.CtStateBitESTABLISHED
	if priority <= *nftables.ChainPriorityConntrack {
		opening, later = 0, 0
	}
	switch hook {
	case *nftables.ChainHookPrerouting:
		return []sample{
			{Forwards, probe{in: guestLink, out: noInterface, src: guest, dst: own, state: later}, fromGuests},
			{Egress, probe{in: guestLink, out: noInterface, src: guest, state: opening}, fromGuests},
		}
	case *nftables.ChainHookInput:
		// NAT of replies is undone before any chain of this hook.
		return []sample{{Forwards, probe{in: guestLink, out: noInterface, src: guest, dst: localhost(), state: later}, fromGuests}}
	case *nftables.ChainHookForward:
		return []sample{
			{Egress, probe{in: guestLink, src: guest, state: opening}, fromGuests},
			{Egress, probe{out: guestLink, dst: guest, state: later}, toGuests},
		}
	case *nftables.ChainHookOutput:
		// The interface is the one from before NAT throughout this hook.
		p := probe{in: noInterface, out: "lo", src: localhost(), dst: localhost(), state: opening}
		match := "ip daddr 127.0.0.1"
		if priority > *nftables.ChainPriorityNATDest {
			p.dst, match = guest, fmt.Sprintf("ip daddr %s", h.pool)
		}
		return []sample{{Forwards, p, match}}
	case *nftables.ChainHookPostrouting:
		p := probe{in: noInterface, out: guestLink, src: localhost(), dst: guest, state: opening}
		if priority > *nftables.ChainPriorityNATSource {
			p.src = own
		}
		return []sample{
			{Forwards, p, toGuests},
			{Egress, probe{in: guestLink, src: guest, state: opening}, fmt.Sprintf("ip saddr %s", h.pool)},
			{Egress, probe{out: guestLink, dst: guest, state: later}, toGuests},
		}
	}
	return nil
}
