package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/network"
)

// runtimeVariable tells an owner the runtime directory of the network.
const runtimeVariable = "SMOLVM_BENCH_RUNTIME"

// forwardsPerOwner is as many as fit below the limit of open files that is usual: a
// forward has two sockets. So two owners have manyForwards.
const forwardsPerOwner = manyForwards / 2

// manyBase is the first of the guest ports that many forwards lead to.
const manyBase = 20000

// serveOwner is another owner of forwards, until its input ends.
func serveOwner() (err error) {
	host := network.NewHost(network.Options{RuntimeDir: os.Getenv(runtimeVariable)})
	defer func() { err = errors.Join(err, host.Close()) }()
	m := newManager(host.Table(), nil)
	defer func() { err = errors.Join(err, m.Close()) }()
	if _, err := exposeMany(context.Background(), m, make(samples[time.Duration])); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// exposeMany exposes an owner's share of many forwards and returns their host ports.
func exposeMany(ctx context.Context, m *forward.Manager, s samples[time.Duration]) ([]int, error) {
	if err := m.Prove(ctx); err != nil {
		return nil, err
	}
	var ports []int
	for i := range forwardsPerOwner {
		if err := timed(s, eachOfMany, func() error {
			f, err := expose(ctx, m, forward.Request{GuestPort: manyBase + i, Transport: forward.NFTables})
			ports = append(ports, f.HostPort)
			return err
		}); err != nil {
			return nil, err
		}
	}
	return ports, nil
}

// newManager makes a manager of the guest's forwards.
func newManager(table forward.Table, tunnel forward.Dialer) *forward.Manager {
	return forward.NewManager(forward.Config{
		VM: "bench", Table: table, Guest: netip.MustParseAddr(guestAddress), Tunnel: tunnel,
	})
}
