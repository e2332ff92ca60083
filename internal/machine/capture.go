package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/layer"
	"github.com/smolvm/smolvm/internal/qcow2"
	"github.com/smolvm/smolvm/internal/saved"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/vmm"
)

const (
	// flatLayers is how many layers a disk may be on when its VM starts: finding out which of them
	// has something takes time.
	flatLayers = 16
	// maxLayers is how many it may be on at all. The monitor has a file open for each.
	maxLayers = 500
)

var errDeep = errors.New("the VM was copied so often that its disk is on too many layers")

// flatten makes a disk that is on many layers one that is on the image alone.
func (h *Host) flatten(ctx context.Context, disk string, img *image.Image) error {
	depth, err := h.layers.Depth(disk)
	if err != nil || depth <= flatLayers {
		return err
	}
	if h.opts.Progress != nil {
		h.opts.Progress(image.Progress{Stage: "flatten the VM's disk"})
	}
	err = layer.Flatten(ctx, disk, img.RootFS)
	if errors.Is(err, exec.ErrNotFound) {
		h.opts.Log.Warn("a disk stays on many layers, which is slower: qemu-img is missing (Debian: qemu-utils)", "layers", depth)
		return nil
	}
	if err != nil {
		return err
	}
	h.cleanLayers()
	return nil
}

// Capture makes a copy of the VM as it is now, in the directory of a draft: its disk and, if it
// runs, or was suspended, its memory. A VM that runs stands still for a moment and goes on.
func (v *VM) Capture(ctx context.Context, dir string) error {
	return v.copyTo(ctx, dir, true)
}

// CaptureDisk makes a copy of the VM's disk as it is now, in the directory of a draft. A guest that
// runs writes out what it has, and goes on all the time. The error wraps ErrNotWritten if part of
// what it wrote is in its memory only.
func (v *VM) CaptureDisk(ctx context.Context, dir string) error {
	return v.copyTo(ctx, dir, false)
}

// copyTo makes a copy of the VM, with its memory or of its disk alone.
func (v *VM) copyTo(ctx context.Context, dir string, memory bool) error {
	v.life.Lock()
	defer v.life.Unlock()
	claim, r, err := v.own(ctx)
	if err == nil {
		err = v.capture(ctx, claim, r, dir, memory)
		err = errors.Join(err, v.disownIdle())
	}
	if err != nil {
		return fmt.Errorf("cannot copy VM: %w", err)
	}
	return nil
}

// disownIdle is disown unless the VM runs here, or is about to. The caller holds v.life.
func (v *VM) disownIdle() error {
	v.mu.Lock()
	busy := v.run != nil || v.revival != nil
	v.mu.Unlock()
	if busy {
		return nil
	}
	return v.disown()
}

func (v *VM) capture(ctx context.Context, claim *store.Claim, r *run, dir string, memory bool) error {
	if !v.host.store.IsDraft(dir) {
		return fmt.Errorf("%w: copies are not made in %s", ErrInvalidOption, dir)
	}
	release, err := v.host.layers.Hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	rec := claim.Record()
	if memory && canWrite(rec.Disks) {
		return errOwnDisks
	}
	depth, err := v.host.layers.Depth(filepath.Join(claim.Dir(), rec.DiskFile()))
	switch {
	case err != nil:
		return err
	case depth >= maxLayers:
		return fmt.Errorf("%w: stop the VM and start it again, which flattens it", errDeep)
	}
	running := r != nil && r.alive()
	switch {
	case running && memory:
		err = v.captureRun(ctx, claim, r, saved.NewDraft(dir))
	case running:
		err = v.captureWritten(ctx, claim, r, dir)
	case rec.Run != nil:
		err = store.ErrInUse // it lives on without an owner
	case rec.Saved != "" && !memory:
		err = fmt.Errorf("%w: the VM is suspended; start it first", ErrNotWritten)
	default:
		if rec.Saved != "" {
			err = saved.Share(filepath.Join(claim.Dir(), rec.Saved), dir)
		}
		if err == nil {
			err = v.freezeDisk(claim, dir, nil)
		}
	}
	if err != nil {
		return err
	}
	return store.WriteSnapshot(dir, store.Snapshot{
		VM: rec.Name, Created: time.Now().UTC(), Running: memory && (running || rec.Saved != ""),
		Design: rec.Design,
	})
}

// captureWritten copies the disk of a VM that runs.
func (v *VM) captureWritten(ctx context.Context, claim *store.Claim, r *run, dir string) error {
	if r.paused.Load() {
		return fmt.Errorf("%w: the VM is paused; resume it first", ErrNotWritten)
	}
	if err := r.channel.Sync(ctx); err != nil {
		return err
	}
	return v.freezeDisk(claim, dir, func(path string) error { return r.machine.OverlayDisk(ctx, path) })
}

// captureRun copies a VM that runs. It goes on afterwards, unless it was paused.
func (v *VM) captureRun(ctx context.Context, claim *store.Claim, r *run, d *saved.Draft) error {
	letGo, err := r.hold(claim)
	if err != nil {
		return err
	}
	err = v.save(ctx, claim, r, d, func(ctx context.Context) error {
		return v.freezeDisk(claim, d.Dir, func(path string) error { return r.machine.OverlayDisk(ctx, path) })
	})
	if err := errors.Join(err, letGo(context.WithoutCancel(ctx))); err != nil {
		return err
	}
	return d.Seal()
}

// hold prepares for a guest that stands still while its machine is saved. A new owner would let it go on, and so
// does letGo, unless it is paused anyway.
func (r *run) hold(claim *store.Claim) (letGo func(context.Context) error, err error) {
	if r.paused.Load() {
		return func(context.Context) error { return nil }, nil
	}
	if err := noteHeld(claim, true); err != nil {
		return nil, err
	}
	r.channel.KeepAlive(0, 0) // there will be no sign of life
	return func(ctx context.Context) error {
		err := r.machine.Resume(ctx)
		r.channel.KeepAlive(guestlink.PingEvery, guestlink.PingTimeout)
		if err := errors.Join(err, noteHeld(claim, false)); err != nil {
			return err
		}
		syncClock(ctx, r.channel, r.log) // it stood still
		return nil
	}, nil
}

// noteHeld notes whether the guest stands still though nobody paused it.
func noteHeld(claim *store.Claim, held bool) error {
	return claim.Update(func(rec *store.Record) {
		if rec.Run == nil {
			return // it has just ended
		}
		run := *rec.Run
		run.Held = held
		rec.Run = &run
	})
}

// save saves the machine of a run, which is paused then, into a draft that is not sealed yet.
func (v *VM) save(ctx context.Context, claim *store.Claim, r *run, d *saved.Draft, stopped func(context.Context) error) error {
	rec := claim.Record()
	var err error
	d.Shape, err = v.host.shape(ctx, vmm.Config{
		Disk: rec.DiskFile(), Disks: rec.Disks, MemoryMiB: rec.MemoryMiB, CPUs: rec.CPUs, Accelerator: r.accelerator, Network: r.net.device,
	})
	if err != nil {
		return err
	}
	if err := enoughSpace(d.Dir, int64(rec.MemoryMiB)<<20); err != nil {
		return err
	}
	if err := r.machine.Save(ctx, vmm.Destination{Memory: d.Memory, State: d.State, Stopped: stopped}); err != nil {
		return err
	}
	console, err := os.ReadFile(filepath.Join(claim.Dir(), vmm.ConsoleLog))
	if err == nil {
		err = os.WriteFile(d.Console, console, 0o600)
	}
	if err != nil {
		return fmt.Errorf("copy console's log: %w", err)
	}
	return nil
}

// shape is what a machine of this config must have to go on from another.
func (h *Host) shape(ctx context.Context, cfg vmm.Config) (vmm.Shape, error) {
	shape, err := h.driver.Shape(ctx, cfg)
	shape.Guest = guestapi.Protocol
	return shape, err
}

// freezeDisk makes what is on the VM's disk a layer, puts an overlay on it into dir, and another
// one in the disk's place, which swap has the machine use if it runs. The caller holds the layers.
func (v *VM) freezeDisk(claim *store.Claim, dir string, swap func(path string) error) (err error) {
	rec := claim.Record()
	present := filepath.Join(claim.Dir(), rec.DiskFile())
	name := store.NewDiskFile()
	next := filepath.Join(claim.Dir(), name)
	overlay := qcow2.Overlay{Size: rec.DiskSize, Backing: v.host.layers.NewPath(), Format: qcow2.Qcow2}
	made := []string{saved.NewDraft(dir).Disk, next, overlay.Backing}
	defer func() {
		if err != nil {
			for _, path := range made {
				if rmErr := os.Remove(path); !errors.Is(rmErr, os.ErrNotExist) {
					err = errors.Join(err, rmErr)
				}
			}
		}
	}()
	for _, path := range made[:2] {
		if err := overlay.Create(path); err != nil {
			return err
		}
	}
	if err := layer.Freeze(present, overlay.Backing); err != nil {
		return err
	}
	// First the record: should this process end now, the machine writes on to what is the layer, on
	// which nobody else has anything yet.
	if err := claim.Update(func(rec *store.Record) { rec.Disk = name }); err != nil {
		return err
	}
	if swap != nil {
		if err := swap(next); err != nil {
			return errors.Join(err, claim.Update(func(r *store.Record) { r.Disk = rec.Disk }))
		}
	}
	return os.Remove(present)
}
