package network

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

const (
	tableName     = "smolvm"
	mapName       = "forwards"
	setToGuests   = "to_guests"
	setFromGuests = "from_guests"
	setBorrowed   = "borrowed"

	// egressGroup is the interface group of guests that may reach the world. A TAP
	// is not in it unless that was asked for, and the mark goes when the TAP goes.
	egressGroup = 0x736d
)

// ruleset is what stands in the kernel while there are VMs. Guests' interfaces are
// matched by the beginning of their names, so that the guards are there before a
// guest is, and cost the same for a thousand.
type ruleset struct {
	tables []*nftables.Table
	sets   []*nftables.Set
	chains []*nftables.Chain
	rules  []*nftables.Rule
}

// newRuleset returns the rules for a pool of guest addresses.
func newRuleset(pool netip.Prefix, ipv6 bool) *ruleset {
	rs := &ruleset{}
	rs.forwards(pool)
	if ipv6 {
		rs.noIPv6()
	}
	return rs
}

// forwards lays out table ip smolvm.
func (rs *ruleset) forwards(pool netip.Prefix) {
	t := rs.table(nftables.TableFamilyIPv4)
	rs.sets = append(rs.sets, forwardsMap(t), toGuestsSet(t), fromGuestsSet(t), borrowedSet(t))

	prerouting := rs.chain(t, "prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw)
	rs.rule(prerouting, "localhost is reached from this host only",
		not(iifname("lo")), daddrIn(loopback()), drop())
	rs.rule(prerouting, "no guest is localhost",
		iifname(interfacePrefix+"*"), saddrIn(loopback()), drop())
	rs.rule(prerouting, "a guest has no address but its own",
		iifname(interfacePrefix+"*"), noRouteBack(), drop())

	output := rs.chain(t, "output", nftables.ChainTypeNAT, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest)
	rs.rule(output, "a connection made elsewhere stays there",
		tcpNotOpening(), verdict(expr.VerdictReturn))
	rs.rule(output, "what is exposed goes to its guest",
		daddrIn(only(localhost())), dnatByMap())

	postrouting := rs.chain(t, "postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource)
	rs.rule(postrouting, "a guest can answer its own interface only",
		oifname(interfacePrefix+"*"), saddrIn(loopback()), masquerade())
	rs.rule(postrouting, "guests reach the world as this host",
		not(oifname(interfacePrefix+"*")), saddrIn(pool), masquerade())

	input := rs.chain(t, "input", nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter)
	rs.rule(input, "a guest answers this host",
		iifname(interfacePrefix+"*"), ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
	rs.rule(input, "a guest may ping its gateway",
		iifname(interfacePrefix+"*"), echoRequest(), toOwnHostEnd(), verdict(expr.VerdictAccept))
	rs.rule(input, "and reaches nothing else here",
		iifname(interfacePrefix+"*"), drop())

	forward := rs.chain(t, "forward", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter)
	rs.rule(forward, "no guest reaches another",
		iifname(interfacePrefix+"*"), oifname(interfacePrefix+"*"), drop())
	rs.rule(forward, "no guest reaches cloud metadata",
		iifname(interfacePrefix+"*"), daddrIn(netip.MustParsePrefix("169.254.0.0/16")), drop())
	rs.rule(forward, "a guest without egress reaches nothing",
		iifname(interfacePrefix+"*"), iifgroupNot(egressGroup), drop())
	rs.rule(forward, "what NAT does not know would leave with a guest's address",
		iifname(interfacePrefix+"*"), ctState(expr.CtStateBitINVALID), drop())
	rs.rule(forward, "nobody but this host opens connections to a guest",
		oifname(interfacePrefix+"*"), noCtState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), drop())
	rs.rule(forward, "forwarding switched on for guests serves guests only",
		iifnameIn(setBorrowed), not(oifname(interfacePrefix+"*")),
		noCtState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), notDNATed(), drop())

	rs.counting(t)
}

// counting lays out the chains that count bytes. They see packets as the host's
// programs do, with the forward's port in them: before the destination is rewritten
// on the way out, and after the source is on the way in. The packet that opens a
// connection is not DNATed yet when the first sees it; the map counts that.
func (rs *ruleset) counting(t *nftables.Table) {
	beforeNAT, afterNAT := *nftables.ChainPriorityMangle, *nftables.ChainPriorityNATSource+10
	output := rs.chain(t, "count_output", nftables.ChainTypeFilter, nftables.ChainHookOutput, beforeNAT)
	rs.rule(output, "what goes to guests through forwards is counted",
		daddrIn(only(localhost())), not(notDNATed()), protocolAndPort(destinationPort), in(setToGuests))
	input := rs.chain(t, "count_input", nftables.ChainTypeFilter, nftables.ChainHookInput, afterNAT)
	rs.rule(input, "and what comes back",
		iifname(interfacePrefix+"*"), saddrIn(only(localhost())), protocolAndPort(sourcePort), in(setFromGuests))
}

// noIPv6 lays out table ip6 smolvm. IPv6 is off on guests' interfaces, and stays
// shut should somebody switch it on for all.
func (rs *ruleset) noIPv6() {
	t := rs.table(nftables.TableFamilyIPv6)
	prerouting := rs.chain(t, "prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw)
	rs.rule(prerouting, "guests have no IPv6", iifname(interfacePrefix+"*"), drop())
	postrouting := rs.chain(t, "postrouting", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, *nftables.ChainPriorityFilter)
	rs.rule(postrouting, "guests have no IPv6", oifname(interfacePrefix+"*"), drop())
}

func (rs *ruleset) table(family nftables.TableFamily) *nftables.Table {
	t := &nftables.Table{Name: tableName, Family: family}
	rs.tables = append(rs.tables, t)
	return t
}

func (rs *ruleset) chain(t *nftables.Table, name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	c := &nftables.Chain{Table: t, Name: name, Type: kind, Hooknum: hook, Priority: &priority, Policy: &accept}
	rs.chains = append(rs.chains, c)
	return c
}

func (rs *ruleset) rule(c *nftables.Chain, comment string, parts ...[]expr.Any) {
	r := &nftables.Rule{Table: c.Table, Chain: c, UserData: userdata.AppendString(nil, userdata.TypeComment, comment)}
	for _, part := range parts {
		r.Exprs = append(r.Exprs, part...)
	}
	rs.rules = append(rs.rules, r)
}

// forwardsMap is the map of all forwards: protocol and port of localhost to
// address and port of a guest.
func forwardsMap(t *nftables.Table) *nftables.Set {
	return &nftables.Set{
		Table: t, Name: mapName, IsMap: true, Concatenation: true, Counter: true,
		KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
		DataType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService),
		Comment:  "port of localhost : port of a guest, and how many connections were opened",
	}
}

// toGuestsSet and fromGuestsSet have an element for each of the map's, which counts.
func toGuestsSet(t *nftables.Table) *nftables.Set {
	return countingSet(t, setToGuests, "bytes sent to ports of localhost, without the packets that open connections")
}

func fromGuestsSet(t *nftables.Table) *nftables.Set {
	return countingSet(t, setFromGuests, "bytes received from ports of localhost")
}

func countingSet(t *nftables.Table, name, comment string) *nftables.Set {
	return &nftables.Set{
		Table: t, Name: name, Concatenation: true, Counter: true, Comment: comment,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
	}
}

func borrowedSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{
		Table: t, Name: setBorrowed, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian,
		Comment: "interfaces that forward for guests' sake only",
	}
}

// only is the range of one address.
func only(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func loopback() netip.Prefix { return netip.MustParsePrefix("127.0.0.0/8") }
