package machine

import (
	"context"
	"errors"
	"fmt"

	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/vmm"
)

// errPaused is why nothing gets through to a paused guest.
var errPaused = errors.New("the VM is paused")

// Pause stops the guest's processors. Its memory, its connections and what it has
// exposed stay.
func (v *VM) Pause(ctx context.Context) error { return v.setPaused(ctx, true) }

// Resume lets a paused guest run again.
func (v *VM) Resume(ctx context.Context) error { return v.setPaused(ctx, false) }

func (v *VM) setPaused(ctx context.Context, paused bool) error {
	v.life.Lock()
	defer v.life.Unlock()
	op, change := "resume VM", vmm.Machine.Resume
	if paused {
		op, change = "pause VM", vmm.Machine.Pause
	}
	r, err := v.running(ctx, op)
	if err != nil || r.paused.Load() == paused {
		return err
	}
	if paused {
		r.channel.KeepAlive(0, 0) // there will be no sign of life
	}
	if err := change(r.machine, ctx); err != nil {
		r.channel.KeepAlive(guestlink.PingEvery, guestlink.PingTimeout)
		return v.unlessStopped(ctx, op, fmt.Errorf("%s: %w", op, err))
	}
	r.paused.Store(paused)
	if paused {
		r.forwards.SetGuest(errPaused)
		return nil
	}
	r.channel.KeepAlive(guestlink.PingEvery, guestlink.PingTimeout)
	r.forwards.SetGuest(nil)
	if err := v.tellIdentity(ctx, r); err != nil { // its environment may have been changed meanwhile
		return err
	}
	syncClock(ctx, r.channel, r.log) // it stood still
	return nil
}
