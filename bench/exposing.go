package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
)

const (
	exposeTimes  = 50 // per round
	manyForwards = 10000
)

// What is measured of exposing.
const (
	exposing   = "expose to connectable"
	unexposing = "unexpose to port free"
	nftTwice   = "the nft program, twice"
	eachOfMany = "each expose from the 5,001st to the 10,000th"
	removeMany = "removal of 5,000 of them"
	amongMany  = ", among 10,000"
	onBusyHost = ", on a busy host"
)

// nftTable is a table to hold the nft program against, which nothing reads.
const nftTable = `table ip bench {
	map forwards { type inet_proto . inet_service : ipv4_addr . inet_service; }
}`

// exposing measures what a caller waits for, alone and among 10,000 forwards.
func (w *world) exposing(ctx context.Context, b *strings.Builder, set settings, routes []route) (err error) {
	s := make(samples[time.Duration])
	m := newManager(w.table, nil)
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.Prove(ctx); err != nil {
		return err
	}
	if err := w.nft("add", nftTable); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.nft("delete", "table ip bench")) }()
	if err := w.exposeAgain(ctx, m, s, "", set); err != nil {
		return err
	}
	among, err := w.amongMany(ctx, m, s, set, routes[:2])
	if err != nil {
		return err
	}
	// Once more, so that what changes by itself over time is on both sides.
	m2 := newManager(w.table, nil)
	defer func() { err = errors.Join(err, m2.Close()) }()
	if err := m2.Prove(ctx); err != nil {
		return err
	}
	if err := w.exposeAgain(ctx, m2, s, "", set); err != nil {
		return err
	}
	exposingTable(b, s, set)
	fmt.Fprintf(b, "Connect to first byte while there are 10,000 forwards, of two owners:\n\n")
	latencyTable(b, among, routes[:2], []versus{{ours: byNFTables, peer: direct, reach: atMost(1.05), tail: atMost(1.2)}})
	return nil
}

// exposingBusy measures the same once the kernel remembers many thousand connections of
// the other measurements, as it does on a busy host.
func (w *world) exposingBusy(ctx context.Context, b *strings.Builder, set settings, _ []route) (err error) {
	s := make(samples[time.Duration])
	m := newManager(w.table, nil)
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.Prove(ctx); err != nil {
		return err
	}
	if err := w.exposeAgain(ctx, m, s, onBusyHost, set); err != nil {
		return err
	}
	remembered, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		return fmt.Errorf("count connections: %w", err)
	}
	fmt.Fprintf(b, "## Expose and unexpose on a busy host\n\nThe kernel remembers %s connections.\n\n| what | p50 | p99 |\n|---|---:|---:|\n", strings.TrimSpace(string(remembered)))
	for _, what := range []string{exposing + onBusyHost, unexposing + onBusyHost} {
		fmt.Fprintf(b, "| %s | %s | %s |\n", what, us(s.median(what)), us(s.quantile(what, 0.99)))
	}
	fmt.Fprintln(b)
	return nil
}

// exposeAgain exposes and unexposes a port, and holds it against the nft program.
func (w *world) exposeAgain(ctx context.Context, m *forward.Manager, s samples[time.Duration], suffix string, set settings) error {
	for range set.rounds * exposeTimes / 2 {
		var f forward.Forward
		if err := timed(s, exposing+suffix, func() (err error) {
			if f, err = expose(ctx, m, forward.Request{GuestPort: portByte, Transport: forward.NFTables}); err != nil {
				return err
			}
			return touch(f.HostPort)
		}); err != nil {
			return err
		}
		if err := timed(s, unexposing+suffix, func() error {
			if err := m.Unexpose(ctx, f.Pair); err != nil {
				return err
			}
			return bind(f.HostPort)
		}); err != nil {
			return err
		}
		if suffix != "" {
			continue
		}
		if err := timed(s, nftTwice, func() error {
			const element = "element ip bench forwards { tcp . 8000 "
			return errors.Join(w.nft("add", element+": 198.18.0.1 . 80 }"), w.nft("delete", element+"}"))
		}); err != nil {
			return err
		}
	}
	return nil
}

// amongMany does all that while there are many forwards, and then removes them.
func (w *world) amongMany(ctx context.Context, m *forward.Manager, s samples[time.Duration], set settings, routes []route) (_ samples[time.Duration], err error) {
	other, err := w.startOwner()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, other()) }()
	ports, err := exposeMany(ctx, m, s)
	if err != nil {
		return nil, err
	}
	progress("%d forwards made", manyForwards)
	if err := w.exposeAgain(ctx, m, s, amongMany, set); err != nil {
		return nil, err
	}
	times, err := w.connects("connect"+amongMany, set.rounds*latencyBlocks/2, routes, task{})
	if err != nil {
		return nil, err
	}
	if err := timed(s, removeMany, m.Close); err != nil {
		return nil, err
	}
	for _, port := range ports {
		left, err := w.table.Lookup(ctx, forward.TCP, uint16(port))
		if err == nil && left.IsValid() {
			err = errors.New("still forwarded")
		}
		if err := errors.Join(err, bind(port)); err != nil {
			return nil, fmt.Errorf("port %d after the removal of its forward: %w", port, err)
		}
	}
	return times, nil
}

// startOwner starts an owner of the other half of many forwards. The caller owes a
// call of end, which lets it remove them.
func (w *world) startOwner() (end func() error, err error) {
	cmd := asRole(roleOwner)
	cmd.Env = append(cmd.Env, runtimeVariable+"="+w.runtime)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p, err := w.host.startReady(cmd)
	if err != nil {
		return nil, err
	}
	return func() error { return errors.Join(in.Close(), p.cmd.Wait()) }, nil
}

func exposingTable(b *strings.Builder, s samples[time.Duration], set settings) {
	fmt.Fprintf(b, "## Expose and unexpose\n\nBy nftables, %d times each; the nft program adds an element to a map of its own and deletes it.\n\n", set.rounds*exposeTimes/2*2)
	line := func(what, peer string, limit time.Duration, reach target) comparison {
		against := limit
		text := ms(limit)
		if peer != "" {
			against, text = s.median(peer), fmt.Sprintf("%s: %s", peer, us(s.median(peer)))
		}
		return comparison{what + ", p50", us(s.median(what)), text, over(s.median(what), against), reach}
	}
	comparisons(b, []comparison{
		line(exposing, "", time.Millisecond, atMost(1)),
		line(exposing, nftTwice, 0, atMost(0.2)),
		line(exposing+amongMany, exposing, 0, atMost(1.2)),
		line(unexposing, "", time.Millisecond, atMost(1)),
		line(unexposing+amongMany, "", time.Millisecond, atMost(1)),
	})
	fmt.Fprintf(b, "| what | p50 | p99 |\n|---|---:|---:|\n")
	for _, what := range []string{exposing, exposing + amongMany, unexposing, unexposing + amongMany, nftTwice, eachOfMany, removeMany} {
		fmt.Fprintf(b, "| %s | %s | %s |\n", what, us(s.median(what)), us(s.quantile(what, 0.99)))
	}
	fmt.Fprintln(b)
}

// touch connects to a host port.
func touch(port int) error {
	fd, err := task{Address: loopbackPort(port)}.dial(unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	return errors.Join(err, unix.Close(fd))
}

// bind takes a host port and lets it go, which only works if it is free.
func bind(port int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: loopbackPort(port).Addr().As4()}); err != nil {
		return errors.Join(fmt.Errorf("bind port %d: %w", port, err), unix.Close(fd))
	}
	return unix.Close(fd)
}

func loopbackPort(port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(ipv4Loopback), uint16(port))
}

// nft runs the nft program.
func (w *world) nft(verb, what string) error {
	_, err := w.host.output(exec.Command("nft", verb+" "+what))
	return err
}
