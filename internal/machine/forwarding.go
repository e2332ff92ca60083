package machine

import (
	"context"
	"fmt"
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

// Expose makes a port of the guest answer on localhost.
func (v *VM) Expose(ctx context.Context, req forward.Request) (forward.Forward, error) {
	if err := req.Validate(); err != nil {
		return forward.Forward{}, err
	}
	const op = "expose port"
	r, err := v.running(ctx, op)
	if err != nil {
		return forward.Forward{}, err
	}
	f, err := r.forwards.Expose(ctx, req)
	if err != nil {
		return forward.Forward{}, v.unlessStopped(ctx, op, err)
	}
	return f, v.remember(func(forwards []store.Forward) []store.Forward {
		kept := store.Forward{HostPort: f.HostPort, GuestPort: f.GuestPort, Transport: string(req.Transport)}
		if slices.Contains(forwards, kept) {
			return forwards
		}
		return append(slices.Clone(forwards), kept)
	})
}

// Unexpose ends a forward, if there is one.
func (v *VM) Unexpose(ctx context.Context, hostPort, guestPort int) error {
	req := forward.Request{GuestPort: guestPort, HostPort: hostPort, HostPortSet: true}
	if err := req.Validate(); err != nil {
		return err
	}
	const op = "unexpose port"
	r, err := v.running(ctx, op)
	if err != nil {
		return err
	}
	if err := r.forwards.Unexpose(ctx, hostPort, guestPort); err != nil {
		return v.unlessStopped(ctx, op, err)
	}
	return v.remember(func(forwards []store.Forward) []store.Forward {
		return slices.DeleteFunc(slices.Clone(forwards), func(f store.Forward) bool {
			return f.HostPort == hostPort && f.GuestPort == guestPort
		})
	})
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
	return claim.Update(func(r *store.Record) { r.Forwards = change(r.Forwards) })
}

// exposeAgain exposes what was exposed when the VM last ran. A port that cannot be
// is no reason for the VM not to start.
func (v *VM) exposeAgain(ctx context.Context, r *run, forwards []store.Forward) {
	var now []store.Forward
	for _, f := range forwards {
		got, err := r.forwards.Expose(ctx, forward.Request{
			GuestPort: f.GuestPort, HostPort: f.HostPort, HostPortSet: true, Transport: forward.Transport(f.Transport),
		})
		if err != nil {
			r.log.Warn("could not expose port again", "guest_port", f.GuestPort, "host_port", f.HostPort, "error", err)
			continue
		}
		f.HostPort = got.HostPort
		now = append(now, f)
	}
	if slices.Equal(now, forwards) {
		return
	}
	if err := v.remember(func([]store.Forward) []store.Forward { return now }); err != nil {
		r.log.Warn("could not note which ports are exposed", "error", err)
	}
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

// WaitPort waits until something in the guest listens on a TCP port.
func (v *VM) WaitPort(ctx context.Context, guestPort int) error {
	if err := (forward.Request{GuestPort: guestPort}).Validate(); err != nil {
		return err
	}
	const op = "wait for port"
	r, err := v.running(ctx, op)
	if err != nil {
		return err
	}
	if err := r.listeners.wait(ctx, r.link.Done(), uint16(guestPort)); err != nil {
		return v.unlessStopped(ctx, op, fmt.Errorf("wait for guest port %d: %w", guestPort, timedOut(err)))
	}
	return nil
}
