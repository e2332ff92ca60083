package main

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// The two ways to make requests.
const (
	keptOpen = "connections kept"
	newEach  = "a new connection each"
)

// openConnections is how many wrk has open at once.
const openConnections = 16

// requests measures HTTP requests a second with wrk: first the two routes that one limit
// is about, alone and more often, and then all.
func (w *world) requests(_ context.Context, b *strings.Builder, set settings, routes []route) error {
	fmt.Fprintf(b, "## HTTP requests a second\n\nwrk with %d connections, %v each, against Go's net/http in the guest. First these two alone:\n\n", openConnections, set.length)
	plain := routes[:2]
	if err := w.requestsBy(b, set, 2*set.rounds, plain, []versus{{ours: byNFTables, peer: direct, reach: atLeast(0.97)}}); err != nil {
		return err
	}
	fmt.Fprintf(b, "All routes in turn:\n\n")
	return w.requestsBy(b, set, set.rounds, routes, []versus{
		{ours: byProxy, peer: byDocker},
		{ours: byTunnel, peer: bySSH},
		{ours: byTunnel, peer: bySSHAES},
	})
}

func (w *world) requestsBy(b *strings.Builder, set settings, rounds int, routes []route, pairs []versus) error {
	rates := map[string]samples[float64]{keptOpen: {}, newEach: {}}
	err := interleave("requests", rounds, routes, func(r route) error {
		for _, way := range []string{keptOpen, newEach} {
			rate, err := w.load(r, way, set)
			if err != nil {
				return err
			}
			rates[way].add(r.name, rate)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var lines []comparison
	for _, p := range pairs {
		for _, way := range []string{keptOpen, newEach} {
			reach := p.reach
			if way == newEach {
				reach = target{} // that is what a connect costs, measured above
			}
			ours, peer := rates[way].median(p.ours), rates[way].median(p.peer)
			lines = append(lines, comparison{
				what: fmt.Sprintf("%s ÷ %s, %s", p.ours, p.peer, way),
				ours: perSecond(ours), peer: perSecond(peer), ratio: ours / peer, reach: reach,
			})
		}
	}
	comparisons(b, lines)
	fmt.Fprintf(b, "| route | %s | least to most | %s | least to most |\n|---|---:|---:|---:|---:|\n", keptOpen, newEach)
	for _, r := range routes {
		fmt.Fprintf(b, "| %s |", r.name)
		for _, way := range []string{keptOpen, newEach} {
			s := rates[way]
			fmt.Fprintf(b, " %s | %s to %s |", perSecond(s.median(r.name)), perSecond(s.least(r.name)), perSecond(s.most(r.name)))
		}
		fmt.Fprintln(b)
	}
	fmt.Fprintln(b)
	return nil
}

// load measures requests a second by one route.
func (w *world) load(r route, way string, set settings) (float64, error) {
	args := []string{"-t1", "-c" + strconv.Itoa(openConnections), fmt.Sprintf("-d%ds", max(1, int(set.length.Seconds())))}
	if way == newEach {
		args = append(args, "-H", "Connection: close")
	}
	cmd, err := w.tools.command("usr/bin/wrk", append(args, fmt.Sprintf("http://%s/", r.to(portHTTP)))...)
	if err != nil {
		return 0, err
	}
	out, err := w.host.output(cmd)
	if err != nil {
		return 0, err
	}
	return requestRate(string(out))
}

// requestRate reads wrk's report. Requests that failed must not count as fast ones.
func requestRate(report string) (float64, error) {
	if strings.Contains(report, "Non-2xx") || strings.Contains(report, "Socket errors") {
		return 0, fmt.Errorf("wrk: requests failed: %s", report)
	}
	found := regexp.MustCompile(`(?m)^Requests/sec:\s+([0-9.]+)$`).FindStringSubmatch(report)
	if found == nil {
		return 0, fmt.Errorf("wrk: no rate in its report: %s", report)
	}
	return strconv.ParseFloat(found[1], 64)
}
