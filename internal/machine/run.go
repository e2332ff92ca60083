package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/timing"
	"github.com/smolvm/smolvm/internal/vmm"
)

// run is a VM from start to end: everything that exists for only that long.
type run struct {
	log               *slog.Logger
	machine           vmm.Machine
	accelerator       vmm.Accelerator
	acceleratorReason string
	origin            Origin
	originReason      string // why it is a boot
	// stages are those of the start, once that is done; nil: this process did not see it.
	stages    atomic.Pointer[[]timing.Stage]
	net       *connection
	identity  *identity
	folders   *folders
	channel   *guestlink.Channel
	forwards  *forward.Manager
	listeners *listeners
	main      *mainProcess // nil: there is none

	wanted atomic.Bool   // its end is wanted
	paused atomic.Bool   // changed under VM.life
	ended  chan struct{} // closed once all of it is released, or err says what is not
	err    error         // valid once ended is closed
}

func newRun(log *slog.Logger) *run { return &run{log: log, ended: make(chan struct{})} }

// record is what a new owner has to know of the run, as far as it has come.
func (r *run) record(detached bool) *store.Run {
	rec := &store.Run{
		Detached: detached, Accelerator: string(r.accelerator), AcceleratorReason: r.acceleratorReason,
		Origin: string(r.origin), OriginReason: r.originReason,
	}
	if r.net != nil {
		rec.Network, rec.NetworkReason, rec.Interface = string(r.net.mode), r.net.reason, r.net.hostInterface()
	}
	return rec
}

// startStages are what the start spent its time on, if that is known.
func (r *run) startStages() []timing.Stage {
	if stages := r.stages.Load(); stages != nil {
		return *stages
	}
	return nil
}

// release gives back all that the run held. The machine has ended or is killed.
// Parts that were never made are nil.
func (r *run) release() error {
	var errs []error
	if r.forwards != nil {
		errs = append(errs, r.forwards.Close())
	}
	if r.channel != nil {
		// The channel's other end is gone with the machine: how it closes says nothing.
		_ = r.channel.Close()
	}
	if r.machine != nil {
		errs = append(errs, r.machine.Kill())
	}
	if r.folders != nil {
		errs = append(errs, r.folders.close())
	}
	if r.net != nil {
		errs = append(errs, r.net.Close())
	}
	return errors.Join(errs...)
}

// alive tells whether the machine runs. If it has ended, alive waits until the run
// is released.
func (r *run) alive() bool {
	select {
	case <-r.machine.Done():
		<-r.ended
		return false
	default:
		return true
	}
}

// closeTimeout bounds what Close and other clean-up may take.
const closeTimeout = time.Minute

// wait waits until the run is released.
func (r *run) wait() error {
	<-r.ended
	return r.err
}

// disown lets other processes start a VM that this handle did not make. The
// caller holds v.life.
func (v *VM) disown() error {
	v.mu.Lock()
	made, claim := v.made, v.claim
	v.mu.Unlock()
	if made || claim == nil {
		return nil
	}
	return v.giveUp(claim.Release)
}

// HandOver makes this process the VM's owner, if it is not already, and gives the ownership
// to a child of it, which give starts with the file that it is to Inherit. The child has it
// alone from then on.
func (v *VM) HandOver(ctx context.Context, give func(lock *os.File) error) error {
	v.life.Lock()
	defer v.life.Unlock()
	claim, _, err := v.own(ctx)
	if err != nil {
		return err
	}
	// The next owner may serve the VM at once: what was served here must be gone by then.
	v.unclaimed()
	if err := give(claim.Lock()); err != nil {
		err = errors.Join(err, v.disown())
		if v.Owned() {
			err = errors.Join(err, v.claimed())
		}
		return err
	}
	v.made = false
	return v.giveUp(claim.Release)
}

// Inherit makes this process the owner of the VM of that name, by the file that its
// parent's HandOver gave it.
func (h *Host) Inherit(ctx context.Context, name string, lock *os.File) (*VM, error) {
	claim, err := h.store.Inherit(ctx, name, lock)
	if err != nil {
		return nil, err
	}
	v := &VM{host: h, name: name, claim: claim}
	if err := v.claimed(); err != nil {
		return nil, errors.Join(err, claim.Release())
	}
	return v, nil
}

// Delete ends the VM at once and removes it with its disk.
func (v *VM) Delete(ctx context.Context) error {
	v.callOff()
	v.life.Lock()
	defer v.life.Unlock()
	return errors.Join(v.delete(ctx), v.host.Close())
}

func (v *VM) delete(ctx context.Context) error {
	claim, r, err := v.own(ctx)
	switch {
	case errors.Is(err, ErrDeleted):
		return nil
	case errors.Is(err, store.ErrDamaged):
		return v.discard(ctx)
	case err != nil:
		return fmt.Errorf("cannot delete VM: %w", err)
	}
	if r != nil {
		if err := v.kill(r); err != nil {
			return err
		}
	}
	v.callOff()
	if err := v.giveUp(func() error { return claim.Remove(ctx) }); err != nil {
		return err
	}
	v.setDeleted()
	return nil
}

// setDeleted notes that the VM is gone, and removes what only it used.
func (v *VM) setDeleted() {
	v.mu.Lock()
	v.deleted = true
	v.mu.Unlock()
	v.host.cleanLayers()
}

// discard deletes a VM whose record cannot be read. Its network, of which nothing is known, is
// gone with its monitor.
func (v *VM) discard(ctx context.Context) error {
	name := v.Name()
	err := v.host.driver.KillOrphan(ctx, vmm.Adoption{Dir: v.Dir(), Lock: v.host.store.RunLockPath(name)})
	if err == nil || errors.Is(err, fs.ErrNotExist) { // no lock: it never ran
		err = v.host.store.Discard(ctx, name)
	}
	if err != nil {
		return fmt.Errorf("cannot delete VM: %w", err)
	}
	v.setDeleted()
	return nil
}

// Close gives the VM up, as the public Close tells.
func (v *VM) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	v.callOff()
	v.life.Lock()
	defer v.life.Unlock()
	return errors.Join(v.close(ctx), v.host.Close())
}

// Retire is Close for an owner whose VM has ended, unless it runs again or is about to, and tells
// whether it has done it. This process does not own the VM again then: who asks it to start the VM is told that it
// is in use, and asks another.
func (v *VM) Retire() (retired bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	v.life.Lock()
	defer v.life.Unlock()
	v.mu.Lock()
	r := v.run
	v.mu.Unlock()
	if r != nil && r.alive() {
		return false, nil
	}
	v.mu.Lock()
	coming := v.revival // only now: a run that ends by itself says what is to come
	v.mu.Unlock()
	if coming != nil {
		return false, nil
	}
	err = v.close(ctx)
	v.mu.Lock()
	v.retired = true
	v.mu.Unlock()
	return true, errors.Join(err, v.host.Close())
}

func (v *VM) close(ctx context.Context) error {
	v.mu.Lock()
	claim, r := v.claim, v.run
	v.mu.Unlock()
	switch {
	case claim == nil:
		return nil
	case claim.Record().Ephemeral:
		return v.delete(ctx)
	}
	var err error
	if r != nil {
		err = v.stop(ctx, r, StopOptions{})
	}
	v.callOff()
	v.made = false
	return errors.Join(err, v.disown())
}

// watch releases the run when its machine ends, however it ends.
func (v *VM) watch(r *run) {
	<-r.machine.Done()
	if err := r.machine.Err(); err != nil && !r.wanted.Load() {
		r.log.Warn("VM ended by itself", "error", err)
	}
	// Whoever deletes or gives up the VM waits for the end of its run, so it is
	// still claimed here.
	v.mu.Lock()
	claim := v.claim
	v.mu.Unlock()
	err := r.release()
	if r.main != nil {
		<-r.main.done // nothing is noted of it after the end
	}
	if err != nil {
		// The run stays on record: so whoever looks next, when this process is gone, settles it.
		r.err = fmt.Errorf("release what VM held: %w", err)
		r.log.Warn("could not release all that a VM held", "error", err)
	} else if err = claim.Update(func(rec *store.Record) { rec.Run = nil }); err != nil {
		r.log.Warn("could not note that the VM ended", "error", err)
	}
	v.mu.Lock()
	v.run = nil
	v.revive(r, claim)
	v.mu.Unlock()
	close(r.ended)
}
