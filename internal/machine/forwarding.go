package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/store"
)

// IP is the guest's address, if the VM runs here and the host can reach it.
func (v *VM) IP() netip.Addr {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.run == nil {
		return netip.Addr{}
	}
	return v.run.net.address()
}

// Expose makes ports of the guest answer on localhost: all, or none.
func (v *VM) Expose(ctx context.Context, reqs ...forward.Request) ([]forward.Forward, error) {
	for _, req := range reqs {
		if err := req.Validate(); err != nil {
			return nil, err
		}
	}
	const op = "expose port"
	r, err := v.running(ctx, op)
	if err != nil {
		return nil, err
	}
	v.ports.Lock()
	defer v.ports.Unlock()
	forwards, err := r.forwards.ExposeAll(ctx, reqs)
	if err != nil {
		return nil, v.unlessStopped(ctx, op, err)
	}
	var fresh []forward.Pair
	err = v.remember(func(known []store.Forward) []store.Forward {
		for i, f := range forwards {
			before := len(known)
			if known = remembered(known, f.Pair, reqs[i]); len(known) > before {
				fresh = append(fresh, f.Pair)
			}
		}
		return known
	})
	if err != nil {
		// What the next start would not know of is not to be exposed until then either.
		return nil, errors.Join(err, r.forwards.Unexpose(context.WithoutCancel(ctx), fresh...))
	}
	return forwards, nil
}

// Unexpose ends forwards, those that there are.
func (v *VM) Unexpose(ctx context.Context, pairs ...forward.Pair) error {
	for _, p := range pairs {
		if err := p.Validate(); err != nil {
			return err
		}
	}
	const op = "unexpose port"
	r, err := v.running(ctx, op)
	if err != nil {
		return err
	}
	v.ports.Lock()
	defer v.ports.Unlock()
	var before []store.Forward
	err = v.remember(func(known []store.Forward) []store.Forward {
		before = slices.Clone(known)
		return slices.DeleteFunc(known, func(k store.Forward) bool {
			return slices.ContainsFunc(pairs, func(p forward.Pair) bool { return isOf(k, p) })
		})
	})
	if err != nil {
		return err
	}
	if err := r.forwards.Unexpose(ctx, pairs...); err != nil {
		again := v.remember(func([]store.Forward) []store.Forward { return before })
		return errors.Join(v.unlessStopped(ctx, op, err), again)
	}
	return nil
}

// unlessStopped replaces an error that came of the VM's end by one that says so.
func (v *VM) unlessStopped(ctx context.Context, op string, err error) error {
	if _, notRunning := v.running(ctx, op); notRunning != nil {
		return notRunning
	}
	return err
}

// remember changes which forwards the next start exposes again.
func (v *VM) remember(change func([]store.Forward) []store.Forward) error {
	v.mu.Lock()
	claim := v.claim
	v.mu.Unlock()
	if claim == nil {
		return nil // deleted meanwhile, and its forwards with it
	}
	return claim.UpdateForwards(change)
}

// remembered adds a forward to those known, unless it is there.
func remembered(known []store.Forward, p forward.Pair, req forward.Request) []store.Forward {
	if slices.ContainsFunc(known, func(k store.Forward) bool { return isOf(k, p) }) {
		return known
	}
	return append(known, store.Forward{
		Protocol: string(p.Protocol), GuestPort: p.GuestPort, HostPort: p.HostPort,
		Wanted: req.HostPort, Strict: req.Strict, Transport: string(req.Transport),
	})
}

func isOf(k store.Forward, p forward.Pair) bool {
	p.Protocol = cmp.Or(p.Protocol, forward.TCP)
	return pairOf(k) == p
}

func pairOf(k store.Forward) forward.Pair {
	return forward.Pair{Protocol: forward.Protocol(k.Protocol), HostPort: k.HostPort, GuestPort: k.GuestPort}
}

// exposeAgain exposes what was exposed when the VM last ran: on the port that was asked
// for, or else on the last one, if it is still free. A port that cannot be exposed is no
// reason for the VM not to start, and is tried again by the next start. Ports that never were
// exposed are exposed all, or it fails.
func (v *VM) exposeAgain(ctx context.Context, r *run, claim *store.Claim) error {
	v.ports.Lock()
	defer v.ports.Unlock()
	var failed error
	err := claim.UpdateForwards(func(known []store.Forward) []store.Forward {
		var fresh []int
		if fresh, failed = exposeFirst(ctx, r, known); failed != nil {
			return known
		}
		for i, k := range known {
			if slices.Contains(fresh, i) {
				continue
			}
			got, err := r.forwards.Expose(ctx, forward.Request{
				Protocol: forward.Protocol(k.Protocol), GuestPort: k.GuestPort,
				HostPort: cmp.Or(k.Wanted, k.HostPort), HostPortSet: true, Strict: k.Strict && k.Wanted != 0,
				Transport: forward.Transport(k.Transport),
			})
			if err != nil {
				r.log.Warn("could not expose port again", "guest_port", k.GuestPort, "host_port", k.HostPort, "proto", k.Protocol, "error", err)
				continue
			}
			known[i].HostPort = got.HostPort
		}
		return known
	})
	if err != nil {
		r.log.Warn("could not expose again all that was exposed", "error", err)
	}
	return failed
}

// exposeFirst exposes those of the known forwards that never were exposed, notes their ports, and
// returns which they are.
func exposeFirst(ctx context.Context, r *run, known []store.Forward) (fresh []int, err error) {
	var reqs []forward.Request
	for i, k := range known {
		if k.HostPort != 0 {
			continue
		}
		fresh = append(fresh, i)
		reqs = append(reqs, forward.Request{
			Protocol: forward.Protocol(k.Protocol), GuestPort: k.GuestPort, HostPort: k.Wanted, HostPortSet: k.Wanted != 0,
			Strict: k.Strict, Transport: forward.Transport(k.Transport),
		})
	}
	if len(reqs) == 0 {
		return nil, nil
	}
	forwards, err := r.forwards.ExposeAll(ctx, reqs)
	if err != nil {
		return nil, err
	}
	for i, f := range forwards {
		known[fresh[i]].HostPort = f.HostPort
	}
	return fresh, nil
}

// Forwards returns what is exposed now.
func (v *VM) Forwards() []forward.Forward {
	v.mu.Lock()
	r := v.run
	v.mu.Unlock()
	if r == nil {
		return nil
	}
	return r.forwards.Forwards()
}

// ForwardEvents yields what happens to the forwards, beginning with those that exist,
// until ctx or the VM's run ends.
func (v *VM) ForwardEvents(ctx context.Context) (iter.Seq[forward.Event], error) {
	r, err := v.running(ctx, "watch ports")
	if err != nil {
		return nil, err
	}
	return r.forwards.Events(ctx), nil
}

// WaitPort waits until something in the guest listens on a port.
func (v *VM) WaitPort(ctx context.Context, req forward.Request) error {
	if err := req.Validate(); err != nil {
		return err
	}
	const op = "wait for port"
	r, err := v.running(ctx, op)
	if err != nil {
		return err
	}
	if err := r.listeners.wait(ctx, r.machine.Done(), req); err != nil {
		return v.unlessStopped(ctx, op, fmt.Errorf("wait for guest port %d: %w", req.GuestPort, timedOut(err)))
	}
	return nil
}
