package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

const (
	latencyBlocks  = 40 // blocks of connections per round
	latencyBlock   = 50 // connections made before it is the next route's turn
	warmUpConnects = 20
	// latencyLimit ends a block of a slow route, so that it does not take all the time.
	latencyLimit = 50 * time.Millisecond
)

// latency measures from the connect to the first byte. What has to hold between two
// routes is measured with these two alone, so that neither finds a processor that a slow
// peer has left cold.
func (w *world) latency(_ context.Context, b *strings.Builder, set settings, routes []route) error {
	plain := routes[:2]
	fmt.Fprintf(b, "## Connect to first byte\n\nConnections one after the other, %d of them, or as many as fit in %v, before ", latencyBlock, latencyLimit)
	fmt.Fprintf(b, "it is the next route's turn. First these two alone, by a client that makes no more than the system calls:\n\n")
	limits := []versus{{ours: byNFTables, peer: direct, reach: atMost(1.05), tail: atMost(1.2)}}
	for _, client := range []struct {
		what, intro string
		task        task
	}{
		{"connect", "", task{}},
		{"connect by Go's net package", "and by one that uses Go's net package, as programs do:\n\n", task{GoNet: true}},
	} {
		times, err := w.connects(client.what, set.rounds*latencyBlocks, plain, client.task)
		if err != nil {
			return err
		}
		b.WriteString(client.intro)
		latencyTable(b, times, plain, limits)
	}
	times, err := w.connects("connect by all routes", set.rounds*latencyBlocks/2, routes, task{})
	if err != nil {
		return err
	}
	fmt.Fprintf(b, "All routes in turn:\n\n")
	latencyTable(b, times, routes, []versus{{ours: byProxy, peer: byDocker}, {ours: byTunnel, peer: bySSH}})
	return nil
}

// connects makes connections by each route, in the way that t says.
func (w *world) connects(what string, blocks int, routes []route, t task) (samples[time.Duration], error) {
	block := func(r route, count int) (outcome, error) {
		t.Address, t.Count, t.Limit = r.to(portByte), count, latencyLimit
		return w.client.do(t)
	}
	times := make(samples[time.Duration])
	for _, r := range routes {
		if _, err := block(r, warmUpConnects); err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return times, interleave(what, blocks, routes, func(r route) error {
		o, err := block(r, latencyBlock)
		times.add(r.name, o.Times...)
		return err
	})
}

// latencyTable lays out times at the median and at the tail.
func latencyTable(b *strings.Builder, times samples[time.Duration], routes []route, pairs []versus) {
	var lines []comparison
	for _, p := range pairs {
		for _, q := range []struct {
			name  string
			of    float64
			reach target
		}{{"p50", 0.5, p.reach}, {"p99", 0.99, p.tail}} {
			ours, peer := times.quantile(p.ours, q.of), times.quantile(p.peer, q.of)
			lines = append(lines, comparison{
				what: fmt.Sprintf("%s ÷ %s, %s", p.ours, p.peer, q.name),
				ours: us(ours), peer: us(peer), ratio: over(ours, peer), reach: q.reach,
			})
		}
	}
	comparisons(b, lines)
	fmt.Fprintf(b, "| route | measured | p50 | p99 |\n|---|---:|---:|---:|\n")
	for _, r := range routes {
		fmt.Fprintf(b, "| %s | %d | %s | %s |\n", r.name, len(times[r.name]), us(times.median(r.name)), us(times.quantile(r.name, 0.99)))
	}
	fmt.Fprintln(b)
}
