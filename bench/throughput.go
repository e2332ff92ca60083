package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The two directions of a flow.
const (
	toGuest   = "to the guest"
	fromGuest = "from the guest"
)

// throughput measures one flow at a time with iperf3: first the two routes that one limit
// is about, alone, and then all.
func (w *world) throughput(_ context.Context, b *strings.Builder, set settings, routes []route) error {
	fmt.Fprintf(b, "## Throughput of one flow\n\niperf3, %v each. First these two alone:\n\n", set.length)
	plain := routes[:2]
	rates, err := w.flows(set, 2*set.rounds, plain)
	if err != nil {
		return err
	}
	throughputTable(b, rates, plain, gbits, []versus{{ours: byNFTables, peer: direct, reach: atLeast(0.95)}})
	if rates, err = w.flows(set, set.rounds, routes); err != nil {
		return err
	}
	fmt.Fprintf(b, "All routes in turn:\n\n")
	throughputTable(b, rates, routes, gbits, []versus{
		{ours: byTunnel, peer: bySSH, reach: atLeast(1.2)},
		{ours: byTunnel, peer: bySSHAES},
		{ours: byProxy, peer: byDocker, reach: atLeast(1)},
		{ours: byProxy, peer: bySocat},
		{ours: byNFTables, peer: byDocker},
		{ours: byNFTables, peer: byPasta},
	})
	return nil
}

// flows measures bits a second by each route and direction.
func (w *world) flows(set settings, rounds int, routes []route) (map[string]samples[float64], error) {
	rates := map[string]samples[float64]{toGuest: {}, fromGuest: {}}
	return rates, interleave("throughput", rounds, routes, func(r route) error {
		for _, direction := range []string{toGuest, fromGuest} {
			rate, err := w.flow(r, direction, set.length)
			if err != nil {
				return err
			}
			rates[direction].add(r.name, rate)
		}
		return nil
	})
}

func throughputTable(b *strings.Builder, rates map[string]samples[float64], routes []route, unit func(float64) string, pairs []versus) {
	var lines []comparison
	for _, p := range pairs {
		for _, direction := range []string{toGuest, fromGuest} {
			ours, peer := rates[direction].median(p.ours), rates[direction].median(p.peer)
			lines = append(lines, comparison{
				what: fmt.Sprintf("%s ÷ %s, %s", p.ours, p.peer, direction),
				ours: unit(ours), peer: unit(peer), ratio: ours / peer, reach: p.reach,
			})
		}
	}
	comparisons(b, lines)
	fmt.Fprintf(b, "| route | to the guest | least to most | from the guest | least to most |\n|---|---:|---:|---:|---:|\n")
	for _, r := range routes {
		fmt.Fprintf(b, "| %s |", r.name)
		for _, direction := range []string{toGuest, fromGuest} {
			s := rates[direction]
			fmt.Fprintf(b, " %s | %s to %s |", unit(s.median(r.name)), unit(s.least(r.name)), unit(s.most(r.name)))
		}
		fmt.Fprintln(b)
	}
	fmt.Fprintln(b)
}

// flow measures bits a second, with a server for itself: one that still ends the flow
// before would turn the next client away.
func (w *world) flow(r route, direction string, length time.Duration) (_ float64, err error) {
	server, err := w.tools.command("usr/bin/iperf3", "-s", "-p", strconv.Itoa(r.guestPort(portIPerf)))
	if err != nil {
		return 0, err
	}
	p, err := w.inGuest.start(server)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := w.inGuest.awaitListener(r.guestPort(portIPerf)); err != nil {
		return 0, err
	}
	to := r.to(portIPerf)
	args := []string{"-J", "-c", to.Addr().String(), "-p", strconv.Itoa(int(to.Port())), "-t", strconv.Itoa(max(1, int(length.Seconds())))}
	if direction == fromGuest {
		args = append(args, "-R")
	}
	return w.iperf(args)
}

func (w *world) iperf(args []string) (float64, error) {
	cmd, err := w.tools.command("usr/bin/iperf3", args...)
	if err != nil {
		return 0, err
	}
	out, failed := w.host.output(cmd)
	var report struct {
		Error string
		End   struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	switch err := json.Unmarshal(out, &report); {
	case err != nil:
		return 0, errors.Join(failed, fmt.Errorf("read iperf3's report: %w", err))
	case report.Error != "":
		return 0, errors.New("iperf3: " + report.Error)
	case failed != nil:
		return 0, failed
	case report.End.Received.Rate == 0:
		return 0, errors.New("iperf3: nothing arrived")
	}
	return report.End.Received.Rate, nil
}
