package machine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/vmm"
)

// adoptTimeout bounds what is a matter of milliseconds on an idle host.
const adoptTimeout = 30 * time.Second

// linkTimeout is how long a new owner waits for the guest before it goes on without it.
const linkTimeout = 2 * time.Second

// Adopt takes over a VM that lives on without its owner. The error wraps vmm.ErrGone if there
// is no such VM.
func (v *VM) Adopt(ctx context.Context) error {
	v.life.Lock()
	defer v.life.Unlock()
	claim, r, err := v.own(ctx)
	if err != nil {
		return fmt.Errorf("cannot adopt VM: %w", err)
	}
	if r != nil && r.alive() {
		return nil
	}
	if err := v.adopt(ctx, claim); err != nil {
		return errors.Join(fmt.Errorf("cannot adopt VM: %w", err), v.disown())
	}
	return nil
}

// adopt makes a run of what the last owner's record tells. It does not wait for the guest,
// which may be paused or still booting: what needs the guest waits. A VM that cannot be
// adopted is ended, for nobody could do anything with it.
func (v *VM) adopt(ctx context.Context, claim *store.Claim) error {
	rec := claim.Record()
	where := vmm.Adoption{Dir: claim.Dir(), Lock: claim.RunLockPath()}
	alive, err := claim.Alive(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("take over VM: %w", err)
	case rec.Run == nil || !alive:
		return fmt.Errorf("take over VM: %w", errors.Join(vmm.ErrGone, v.settle(ctx, claim)))
	}
	// It is done or not done, whatever becomes of who asked for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), adoptTimeout)
	defer cancel()
	r, err := v.takeOver(ctx, claim, where)
	if err != nil {
		killErr := v.host.driver.KillOrphan(ctx, where)
		return fmt.Errorf("take over VM, which was ended: %w", errors.Join(err, killErr, v.settle(ctx, claim)))
	}
	// It was about to be suspended, but goes on.
	if err := discardMemory(claim); err != nil {
		r.log.Warn("could not discard what the VM was saved as", "error", err)
	}
	if rec.Run.Held {
		if err := r.goOn(ctx, claim); err != nil {
			r.log.Warn("the VM is paused, for it could not go on", "error", err)
		}
	}
	r.log.Info("took over VM whose owner died", "vmm_pid", r.machine.PID())
	v.begin(r)
	go v.followMain(r)
	if r.paused.Load() {
		r.channel.KeepAlive(0, 0)
		r.forwards.SetGuest(errPaused)
	} else {
		awaitLink(ctx, r)
	}
	// What was exposed and not noted goes first: it might be in the way.
	noted, err := claim.Forwards()
	if err == nil {
		err = forgetOthers(ctx, r, noted, pairOf)
	}
	if err := v.exposeAgain(ctx, r, claim); err != nil {
		r.log.Warn("could not expose again all that was exposed", "error", err)
	}
	exposed := func(f forward.Forward) forward.Pair { return f.Pair }
	if err := errors.Join(err, forgetOthers(ctx, r, r.forwards.Forwards(), exposed)); err != nil {
		r.log.Warn("could not remove what the last owner had exposed", "error", err)
	}
	return nil
}

// goOn lets a guest go on that the last owner held.
func (r *run) goOn(ctx context.Context, claim *store.Claim) error {
	if r.paused.Load() {
		if err := r.machine.Resume(ctx); err != nil {
			return err
		}
		r.paused.Store(false)
	}
	return noteHeld(claim, false)
}

// awaitLink waits a moment for a guest that runs, so that the first who asks is not told that it
// cannot be reached. Who needs the guest waits for as long as it takes.
func awaitLink(ctx context.Context, r *run) {
	ctx, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	_, _ = r.channel.Link(ctx)
}

// forgetOthers ends the forwards that a former owner made and that are not known.
func forgetOthers[T any](ctx context.Context, r *run, known []T, pairOf func(T) forward.Pair) error {
	pairs := make([]forward.Pair, len(known))
	for i, k := range known {
		pairs[i] = pairOf(k)
	}
	return r.net.forgetOthers(ctx, pairs)
}

// takeOver makes the run. If it fails, the machine may live on.
func (v *VM) takeOver(ctx context.Context, claim *store.Claim, where vmm.Adoption) (_ *run, err error) {
	h, rec := v.host, claim.Record()
	r := newRun(h.opts.Log.With("vm", rec.Name))
	r.accelerator, r.acceleratorReason = vmm.Accelerator(rec.Run.Accelerator), rec.Run.AcceleratorReason
	r.origin, r.originReason = Origin(rec.Run.Origin), rec.Run.OriginReason
	defer func() {
		if err != nil {
			err = errors.Join(err, r.release())
		}
	}()
	if r.machine, err = h.driver.Adopt(ctx, where); err != nil {
		return nil, err
	}
	if r.net, err = h.reconnect(ctx, rec); err != nil {
		return nil, err
	}
	img, err := h.images.Find(rec.Image, rec.ImageID)
	if err != nil {
		return nil, err
	}
	if r.identity, err = h.identity(rec, img, r.net.guest); err != nil {
		return nil, err
	}
	r.folders = reopenFolders(claim.Dir(), rec, r.log)
	r.paused.Store(r.machine.Paused())
	r.channel = guestlink.Reopen(r.channelConfig())
	r.serve(h, rec.Name)
	r.main = newMainProcess(r, claim)
	return r, nil
}

// settle notes that the VM has ended, and removes what is left of its network.
func (v *VM) settle(ctx context.Context, claim *store.Claim) error {
	if err := v.host.detach(ctx, []store.Record{claim.Record()}); err != nil {
		return err
	}
	return claim.Update(func(rec *store.Record) { rec.Run = nil })
}
