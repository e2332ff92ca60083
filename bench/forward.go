package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// measureForwarding holds SmolVM's forwards against others' in front of a guest that
// is no VM, where the forwards are what limits.
func measureForwarding(ctx context.Context, set settings) (_ string, err error) {
	on, err := hostLine()
	if err != nil {
		return "", err
	}
	if err := adopt(); err != nil {
		return "", err
	}
	w, err := newWorld(ctx, set)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, w.Close(), nothingLeft()) }()
	versions, err := w.tools.versions("docker.io", "iperf3", "openssh-client", "openssh-server", "passt", "socat", "wrk")
	if err != nil {
		return "", err
	}
	routes, err := w.routes(ctx)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Forwarding\n\nMade by `make bench` (this part alone: `make bench BENCHFLAGS='-only %s'`) on %s. ", partForward, on)
	fmt.Fprintf(&b, "The guest is a network namespace at the end of a virtual cable. All routes are measured in turn, %d rounds, ", set.rounds)
	fmt.Fprintf(&b, "every second one backwards; medians. Peers: %s.\n\n", versions)
	for _, block := range []func(context.Context, *strings.Builder, settings, []route) error{
		w.exposing, w.throughput, w.latency, w.requests, w.datagrams, w.exposingBusy,
	} {
		if err := block(ctx, &b, set, routes); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}
