package machine

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// StopOptions say how a VM is stopped.
type StopOptions struct {
	// Grace is how long the main process has to end by itself; nil: DefaultGrace. It is not asked to
	// with one that is not positive.
	Grace *time.Duration `json:"grace_ns,omitempty"`
}

func (o StopOptions) grace() time.Duration {
	if o.Grace == nil {
		return DefaultGrace
	}
	return *o.Grace
}

// Stop ends the guest in order, the main process first. The VM stays, with its disk and what it had
// exposed.
func (v *VM) Stop(ctx context.Context, opts StopOptions) error {
	v.callOff()
	v.life.Lock()
	defer v.life.Unlock()
	defer v.callOff() // it may have ended by itself in this moment
	v.mu.Lock()
	r, claim, deleted := v.run, v.claim, v.deleted
	v.mu.Unlock()
	switch {
	case deleted:
		return fmt.Errorf("cannot stop VM: %w", ErrDeleted)
	case r != nil:
		if err := v.stop(ctx, r, opts); err != nil {
			return err
		}
	case claim == nil:
		// Another process's VM must not be reported as stopped.
		if _, err := v.running(ctx, "stop VM"); !errors.Is(err, ErrNotRunning) {
			return err
		}
	}
	return v.disown()
}

// Wait waits until the VM does not run in this process, nor is to be started again by it, and tells
// what became of its main process; nil: it has none.
func (v *VM) Wait(ctx context.Context) (*MainInfo, error) {
	v.mu.Lock()
	r, coming, claim := v.run, v.revival, v.claim
	v.mu.Unlock()
	for r != nil || coming != nil {
		var ended <-chan struct{}
		if r != nil {
			ended = r.ended
		} else {
			ended = coming.done
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		v.mu.Lock()
		if r != nil { // what somebody else starts now is not waited for
			r, coming = nil, v.revival
		} else {
			r, coming = v.run, v.revival
		}
		v.mu.Unlock()
	}
	if claim != nil {
		return mainOf(claim.Record(), false), nil
	}
	entry, err := v.host.store.Get(ctx, v.Name())
	if err != nil {
		return nil, nil //nolint:nilerr // it does not run, and there is nothing to tell of it
	}
	return mainOf(entry.Record, false), nil
}

// stop ends a run in order and waits until it is released.
func (v *VM) stop(ctx context.Context, r *run, opts StopOptions) error {
	r.wanted.Store(true)
	// It may finish what it has begun, for whom it has let in.
	r.main.end(ctx, opts.grace())
	// New connections must not reach a guest that is going down.
	err := r.forwards.Close()
	err = errors.Join(err, r.machine.Stop(ctx, r.channel.PowerOff))
	return errors.Join(err, r.wait())
}

// Kill ends the VM at once, as when its plug is pulled. The VM stays, with its disk as it is then.
// It does not wait for a Stop that is under way, but ends it.
func (v *VM) Kill(context.Context) error {
	v.callOff()
	v.mu.Lock()
	r := v.run
	v.mu.Unlock()
	if r == nil {
		return nil
	}
	return v.kill(r)
}

// kill ends a run at once and waits until it is released.
func (v *VM) kill(r *run) error {
	r.wanted.Store(true)
	// Half of the time is the kernel's, to remove the interface, which need not wait for the
	// monitor's end. The release of the run waits for it, and tells what went wrong.
	go func() { _ = r.net.Close() }()
	return errors.Join(r.machine.Kill(), r.wait())
}
