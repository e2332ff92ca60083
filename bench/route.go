package main

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/smolvm/smolvm/internal/forward"
)

// route is a way from the host to the guest's services.
type route struct {
	name string
	slot int // the route's own copies of the services
	host netip.Addr
	base int // what the ports lie above the services'
}

// to is where a client finds a service.
func (r route) to(service int) netip.AddrPort {
	return netip.AddrPortFrom(r.host, uint16(r.base+service))
}

// guestPort is where the guest has it. No two routes lead to the same port: the kernel
// remembers connections that are over for minutes, by their addresses and ports,
// and those of one route would slow down the next.
func (r route) guestPort(service int) int { return r.slot*slotWidth + service }

const (
	slots     = 9
	slotWidth = 100
)

// services are the TCP services that every route leads to.
func services() []int { return []int{portByte, portHTTP, portIPerf} }

// The routes by name.
const (
	direct     = "direct to the guest's address"
	byNFTables = "nftables forward"
	byProxy    = "::1 proxy"
	byTunnel   = "ssh_tunnel"
	bySSH      = "ssh -L"
	bySSHAES   = "ssh -L, AES-GCM"
	byDocker   = "docker-proxy"
	bySocat    = "socat"
	byPasta    = "pasta"
)

const ipv4Loopback = "127.0.0.1"

// forwarded is a route whose host ports lie below those that the kernel hands out.
func forwarded(name string, slot int, host netip.Addr) route {
	return route{name: name, slot: slot, host: host, base: 10000 + 1000*slot}
}

// ours opens SmolVM's routes.
func (w *world) ours(ctx context.Context) ([]route, error) {
	loopback := netip.MustParseAddr(ipv4Loopback)
	routes := []route{
		{name: direct, host: w.guest},
		forwarded(byNFTables, 1, loopback),
		forwarded(byProxy, 2, netip.IPv6Loopback()),
		forwarded(byTunnel, 3, loopback),
	}
	for _, r := range routes[1:] {
		transport := forward.NFTables
		if r.name == byTunnel {
			transport = forward.SSHTunnel
		}
		for _, service := range services() {
			request := forward.Request{GuestPort: r.guestPort(service), HostPort: r.base + service, Transport: transport}
			if _, err := expose(ctx, w.manager, request); err != nil {
				return nil, err
			}
		}
	}
	return routes, nil
}

// routes opens all routes.
func (w *world) routes(ctx context.Context) ([]route, error) {
	routes, err := w.ours(ctx)
	if err != nil {
		return nil, err
	}
	peers, err := w.peers()
	return append(routes, peers...), err
}

// interleave measures each route once a round, one after the other and every other
// round backwards, so that the noise of the machine, and what one leaves for the
// next, meets all of them equally.
func interleave(what string, rounds int, routes []route, measure func(route) error) error {
	for round := range rounds {
		for i := range routes {
			r := routes[i]
			if round%2 == 1 {
				r = routes[len(routes)-1-i]
			}
			if err := measure(r); err != nil {
				return fmt.Errorf("%s by %s: %w", what, r.name, err)
			}
		}
	}
	progress("%s measured", what)
	return nil
}
