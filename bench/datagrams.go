package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
)

const (
	datagramBlocks = 8    // per round
	datagramBlock  = 250  // echoes waited for one by one
	datagramFlood  = 2500 // echoes with a window of datagrams on their way
	datagramWindow = 32
)

// datagrams measures how fast datagrams are echoed.
func (w *world) datagrams(ctx context.Context, b *strings.Builder, set settings, all []route) error {
	routes, err := w.datagramRoutes(ctx, all)
	if err != nil {
		return err
	}
	times, rates := make(samples[time.Duration]), make(samples[float64])
	err = interleave("datagrams", set.rounds*datagramBlocks, routes, func(r route) error {
		o, err := w.client.do(task{Address: r.to(portByte), UDP: true, Count: datagramBlock, Window: 1})
		if err != nil {
			return err
		}
		times.add(r.name, o.Times...)
		o, err = w.client.do(task{Address: r.to(portByte), UDP: true, Count: datagramFlood, Window: datagramWindow})
		rates.add(r.name, datagramFlood/o.Took.Seconds())
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(b, "## UDP\n\nOne datagram sent and its echo received; and echoes a second with %d datagrams on their way.\n\n", datagramWindow)
	pairs := []versus{{ours: byNFTables, peer: direct}, {ours: byNFTables, peer: byDocker}}
	latencyTable(b, times, routes, pairs)
	var lines []comparison
	for _, p := range pairs {
		ours, peer := rates.median(p.ours), rates.median(p.peer)
		lines = append(lines, comparison{
			what: fmt.Sprintf("%s ÷ %s, echoes a second", p.ours, p.peer),
			ours: perSecond(ours), peer: perSecond(peer), ratio: ours / peer,
		})
	}
	comparisons(b, lines)
	return nil
}

// datagramRoutes opens the routes for UDP, until the world ends.
func (w *world) datagramRoutes(ctx context.Context, all []route) ([]route, error) {
	var routes []route
	for _, r := range all {
		var err error
		switch r.name {
		case direct:
		case byNFTables:
			_, err = expose(ctx, w.manager, forward.Request{
				Protocol: forward.UDP, GuestPort: r.guestPort(portByte), HostPort: r.base + portByte, Transport: forward.NFTables,
			})
		case byDocker:
			err = w.startDockerProxy("udp", r.base+portByte, r.guestPort(portByte))
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		routes = append(routes, r)
	}
	return routes, nil
}
