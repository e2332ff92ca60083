package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
)

const (
	// tracePrefix begins the names of the tables that mark packets for a trace.
	tracePrefix = tableName + "-trace-"
	// explainTimeout is enough for an emulated guest to answer, and for a second SYN.
	explainTimeout = 2 * time.Second
	// legacyTables lists the tables of legacy iptables that are in use.
	legacyTables = "/proc/thread-self/net/ip_tables_names"
)

// Explain implements forward.Firewall. The mapping must be in the table. It follows one
// attempt to connect through nftables, where every drop can be seen; of legacy
// iptables it only knows whether it is there.
func (f firewall) Explain(ctx context.Context, m forward.Mapping) string {
	if m.Protocol != forward.TCP {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	culprit, dialed, err := f.host.follow(ctx, m)
	switch {
	case err != nil:
		f.host.log.Debug("who drops a forward's packets could not be found out", "host_port", m.HostPort, "err", err)
		return ""
	case culprit != "":
		return culprit
	case dialed == nil, errors.Is(dialed, unix.ECONNREFUSED):
		return "" // it is not dropped
	}
	return suspect(legacyTables)
}

// follow connects to a mapping with a trace on, and returns what drops packets of it, if
// anything is seen to do so, and how the attempt ended.
func (h *Host) follow(ctx context.Context, m forward.Mapping) (culprit string, dialed, err error) {
	events, err := listenEvents(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTRACE)
	if err != nil {
		return "", nil, err
	}
	defer events.Close()
	conn, err := openRules()
	if err != nil {
		return "", nil, err
	}
	// The kernel removes the table when its owner, this connection, is closed.
	defer func() { err = errors.Join(err, conn.CloseLasting()) }()

	dialCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	result := make(chan error, 1)
	var marking error
	go func() {
		defer events.interrupt()
		dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
			port, err := bindLocalhost(raw)
			if err == nil {
				err = markPackets(conn, m, port)
			}
			marking = err
			return err
		}}
		c, err := dialer.DialContext(dialCtx, "tcp4", netip.AddrPortFrom(localhost(), m.HostPort).String())
		if err == nil {
			c.Close()
		}
		result <- err
	}()
	step, found := findDrop(events)
	cancel()
	dialed = <-result
	if marking != nil {
		return "", nil, marking
	}
	if !found {
		return "", dialed, nil
	}
	return describe(conn, step), dialed, nil
}

// bindLocalhost gives a socket that is about to connect its port.
func bindLocalhost(raw syscall.RawConn) (port uint16, err error) {
	control := raw.Control(func(fd uintptr) {
		if err = unix.Bind(int(fd), &unix.SockaddrInet4{Addr: localhost().As4()}); err != nil {
			return
		}
		var name unix.Sockaddr
		if name, err = unix.Getsockname(int(fd)); err == nil {
			port = uint16(name.(*unix.SockaddrInet4).Port)
		}
	})
	if err = errors.Join(control, err); err != nil {
		return 0, fmt.Errorf("bind: %w", err)
	}
	return port, nil
}

// markPackets has the packets of one connection traced, both ways, from before any
// other table sees them. NAT keeps the client's port, unless it is taken.
func markPackets(conn *nftables.Conn, m forward.Mapping, clientPort uint16) error {
	t := conn.AddTable(&nftables.Table{
		Family: nftables.TableFamilyIPv4, Name: fmt.Sprint(tracePrefix, clientPort), Flags: nftables.TableFlagOwner,
	})
	const sourcePort, destinationPort = 0, 2
	port := func(offset uint32, number uint16) []expr.Any {
		return []expr.Any{payload(expr.PayloadBaseTransportHeader, offset, 2), equal(binaryutil.BigEndian.PutUint16(number))}
	}
	for _, way := range []struct {
		chain, comment string
		hook           *nftables.ChainHook
		match          [][]expr.Any
	}{
		{"output", "follow a connection that does not come about", nftables.ChainHookOutput,
			[][]expr.Any{daddrIn(only(localhost())), l4proto(unix.IPPROTO_TCP), port(sourcePort, clientPort), port(destinationPort, m.HostPort)}},
		{"prerouting", "and the guest's answer", nftables.ChainHookPrerouting,
			[][]expr.Any{saddrIn(only(m.Guest.Addr())), l4proto(unix.IPPROTO_TCP), port(sourcePort, m.Guest.Port()), port(destinationPort, clientPort)}},
	} {
		c := conn.AddChain(&nftables.Chain{
			Table: t, Name: way.chain, Type: nftables.ChainTypeFilter, Hooknum: way.hook, Priority: nftables.ChainPriorityFirst,
		})
		r := &nftables.Rule{Table: t, Chain: c, UserData: userdata.AppendString(nil, userdata.TypeComment, way.comment)}
		for _, phrase := range way.match {
			r.Exprs = append(r.Exprs, phrase...)
		}
		r.Exprs = append(r.Exprs, traced()...)
		conn.AddRule(r)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("set up trace: %w", err)
	}
	return nil
}

func traced() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: []byte{1}},
		&expr.Meta{Key: expr.MetaKeyNFTRACE, SourceRegister: true, Register: 1},
	}
}

// findDrop reads traces until it finds who drops a packet that one of our tables marked,
// or until the socket is interrupted and nothing is left in it.
func findDrop(events *eventSocket) (traceStep, bool) {
	marked := make(map[uint32]bool)
	search := func(datagram []byte) (traceStep, bool) {
		for m := range messages(datagram) {
			step, ok := parseTrace(m)
			if !ok {
				continue
			}
			if strings.HasPrefix(step.table, tracePrefix) {
				marked[step.id] = true
			}
			if step.drops && marked[step.id] {
				return step, true
			}
		}
		return traceStep{}, false
	}
	receive := events.receive
	for {
		datagram, err := receive()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			receive = events.remaining
		case errors.Is(err, unix.ENOBUFS):
		case err != nil:
			return traceStep{}, false
		default:
			if step, ok := search(datagram); ok {
				return step, true
			}
		}
	}
}

// describe says in words who dropped a packet.
func describe(conn *nftables.Conn, step traceStep) string {
	who := fmt.Sprintf("table %s %s, chain %s drops it: ", familyName(nftables.TableFamily(step.family)), step.table, step.chain)
	if step.handle == 0 {
		return who + "policy drop"
	}
	who += fmt.Sprintf("rule with handle %d", step.handle)
	t := &nftables.Table{Family: nftables.TableFamily(step.family), Name: step.table}
	rules, err := conn.GetRules(t, &nftables.Chain{Table: t, Name: step.chain})
	if err != nil {
		return who // it may have gone
	}
	for _, r := range rules {
		if comment, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok && r.Handle == step.handle {
			who += fmt.Sprintf(" (%s)", comment)
		}
	}
	return who
}

// familyName is a table's family as the nft program writes it.
func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyARP:
		return "arp"
	case nftables.TableFamilyNetdev:
		return "netdev"
	case nftables.TableFamilyBridge:
		return "bridge"
	}
	return fmt.Sprint(byte(f))
}

// suspect names the tables of legacy iptables, listed in a file, if there are any.
func suspect(file string) string {
	b, err := os.ReadFile(file)
	tables := strings.Fields(string(b))
	if err != nil || len(tables) == 0 {
		return ""
	}
	return fmt.Sprintf("perhaps a rule of legacy iptables (table %s) drops it", strings.Join(tables, ", "))
}
