package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestbin"
	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/saved"
	"github.com/smolvm/smolvm/internal/share"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/template"
	"github.com/smolvm/smolvm/internal/timing"
	"github.com/smolvm/smolvm/internal/vmm"
)

// bootTimeout bounds the time from QEMU's start to a guest that takes commands:
// two seconds under emulation on an idle host, many times that on a busy one.
const bootTimeout = 2 * time.Minute

// Start boots the VM and returns once the guest takes commands. A VM that lives on without
// its owner is taken over.
func (v *VM) Start(ctx context.Context) error {
	v.callOff()
	v.life.Lock()
	defer v.life.Unlock()
	claim, r, err := v.own(ctx)
	if err != nil {
		return fmt.Errorf("cannot start VM: %w", err)
	}
	if r != nil && r.alive() {
		return nil
	}
	if claim.Record().Run != nil {
		err := v.adopt(ctx, claim)
		switch {
		case err == nil:
			return nil
		case claim.Record().Run != nil:
			return errors.Join(fmt.Errorf("cannot start VM: %w", err), v.disown())
		case !errors.Is(err, vmm.ErrGone):
			v.host.opts.Log.Warn("could not take over VM, which starts anew", "vm", v.Name(), "error", err)
		}
	}
	v.callOff() // it may have ended by itself in this moment
	// Only if there is something to set back: it waits for the disk.
	if claim.Record().Restarts > 0 {
		err = claim.Update(func(rec *store.Record) { rec.Restarts = 0 })
	}
	if err == nil {
		err = v.start(ctx, claim)
	}
	if err != nil {
		v.callOff()
		return errors.Join(fmt.Errorf("cannot start VM: %w", err), v.disown())
	}
	return nil
}

// start makes a run of a VM that does not run, what it has exposed and its main process included. If
// it fails, nothing is left of it. The caller holds v.life.
func (v *VM) start(ctx context.Context, claim *store.Claim) error {
	v.setStarting(true)
	defer v.setStarting(false)
	watch := timing.NewWatch()
	ctx = timing.With(ctx, watch)
	r, err := v.boot(ctx, claim)
	if err != nil {
		return errors.Join(timedOut(err), claim.Update(func(rec *store.Record) { rec.Run = nil }))
	}
	v.begin(r)
	err = v.exposeAgain(ctx, r, claim)
	timing.End(ctx, "publish")
	if err == nil {
		err = timedOut(r.main.start(ctx))
	}
	if err != nil {
		r.main.abandon()
		return errors.Join(err, v.kill(r))
	}
	stages := watch.Stages()
	r.stages.Store(&stages)
	go v.followMain(r)
	return nil
}

func (v *VM) setStarting(starting bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.starting = starting
}

// begin makes a run the VM's.
func (v *VM) begin(r *run) {
	v.mu.Lock()
	v.run = r
	v.mu.Unlock()
	go v.watch(r)
}

// boot makes a run. If it fails, nothing is left of it.
func (v *VM) boot(ctx context.Context, claim *store.Claim) (_ *run, err error) {
	h := v.host
	if h.opts.DiscardMemory {
		if err := discardMemory(claim); err != nil {
			return nil, err
		}
	}
	if err := claim.Tidy(); err != nil {
		return nil, err
	}
	rec := claim.Record()
	r := newRun(h.opts.Log.With("vm", rec.Name))
	defer func() {
		if err != nil {
			err = errors.Join(err, r.release())
		}
	}()
	if r.folders, err = openFolders(claim.Dir(), rec, r.log); err != nil {
		return nil, err
	}
	img, err := h.images.Find(rec.Image, rec.ImageID)
	if err != nil {
		return nil, err
	}
	if err := h.flatten(ctx, filepath.Join(claim.Dir(), rec.DiskFile()), img); err != nil {
		return nil, err
	}
	initrd, err := h.initrd(ctx, img)
	if err != nil {
		return nil, err
	}
	if r.accelerator, r.acceleratorReason, err = h.accelerator(ctx, img.Kernel, initrd); err != nil {
		return nil, err
	}
	if r.accelerator == vmm.TCG && h.opts.Accelerator == "" {
		h.warnOfEmulation(r.log, r.acceleratorReason)
	}
	if err := checkDisks(rec.Disks); err != nil {
		return nil, err
	}
	timing.End(ctx, "prepare")
	// From here on a crash of this program leaves something to be reaped, or to be adopted.
	begun := time.Now().UTC()
	err = claim.Update(func(rec *store.Record) {
		rec.Started, rec.Run = begun, r.record(h.opts.Detached)
		if rec.Saved == "" {
			rec.MainRun = nil
		}
	})
	if err != nil {
		return nil, err
	}
	if r.net, err = h.connect(ctx, rec.Name, NetworkMode(rec.Network), r.log); err != nil {
		return nil, err
	}
	timing.End(ctx, "network")
	if r.identity, err = h.identity(claim.Record(), img, r.net.guest); err != nil {
		return nil, err
	}
	err = v.launch(ctx, claim, r, rec, img, vmm.Config{
		Dir: claim.Dir(), Kernel: img.Kernel, Initrd: initrd, Disk: filepath.Join(claim.Dir(), rec.DiskFile()),
		Disks: rec.Disks, MemoryMiB: rec.MemoryMiB, CPUs: rec.CPUs, Accelerator: r.accelerator, Network: r.net.device,
		Detached: h.opts.Detached,
	})
	if err != nil {
		return nil, err
	}
	r.serve(h, rec.Name)
	r.main = newMainProcess(r, claim)
	timing.End(ctx, "serve")
	return r, nil
}

// launch starts the machine, from a template if that can be, and meets its guest. The record is
// what it was before this start.
func (v *VM) launch(ctx context.Context, claim *store.Claim, r *run, rec store.Record, img *image.Image, cfg vmm.Config) error {
	h := v.host
	if rec.Saved != "" {
		return v.goOn(ctx, claim, r, rec.Saved, cfg)
	}
	t, key, err := h.origin(timing.With(ctx, nil), rec, img, cfg)
	timing.End(ctx, "template")
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		// That a guest cannot have a folder is not the template's fault.
		if err = v.resume(ctx, claim, r, cfg, t); err == nil || ctx.Err() != nil || errors.Is(err, share.ErrFolder) {
			return err
		}
		// Whatever is wrong with it, another start must not find out again.
		if err := h.templates.Remove(key); err != nil {
			r.log.Warn("could not remove a template that does not work", "error", err)
		}
	}
	level := slog.LevelWarn
	if errors.Is(err, errColdBoot) || errors.Is(err, errOwnDisk) || errors.Is(err, errMoreDisks) || errors.Is(err, template.ErrNotMade) {
		level = slog.LevelDebug
	}
	r.log.Log(ctx, level, "guest boots, and does not go on from a template", "reason", err)
	r.origin, r.originReason = FromBoot, err.Error()
	return v.begins(ctx, claim, r, cfg, bootTimeout)
}

// resume starts the machine of a VM that never ran from a template. If it fails, the VM can
// boot.
func (v *VM) resume(ctx context.Context, claim *store.Claim, r *run, cfg vmm.Config, t *saved.Machine) error {
	defer t.Close() //nolint:errcheck // never written to
	if err := replaceDisk(cfg.Disk, t); err != nil {
		return err
	}
	var err error
	if cfg.From, err = t.From(); err != nil {
		return err
	}
	timing.End(ctx, "disk")
	r.origin = FromTemplate
	err = v.begins(ctx, claim, r, cfg, templateTimeout)
	if err != nil && r.machine != nil {
		err = errors.Join(err, r.machine.Kill())
		r.machine = nil
	}
	return err
}

// begins notes what the run begins with, starts its machine and meets the guest.
func (v *VM) begins(ctx context.Context, claim *store.Claim, r *run, cfg vmm.Config, patience time.Duration) error {
	err := claim.Update(func(rec *store.Record) { rec.Run = r.record(cfg.Detached) })
	if err != nil {
		return err
	}
	if cfg.Lock, err = claim.RunLock(ctx); err != nil {
		return err
	}
	timing.End(ctx, "record")
	r.machine, err = v.host.driver.Start(ctx, cfg)
	if err = errors.Join(err, cfg.Lock.Close()); err != nil {
		return err
	}
	r.channel, err = meet(ctx, r, patience)
	return err
}

// serve sets up what needs the guest's channel.
func (r *run) serve(h *Host, vm string) {
	r.forwards = h.forwards(r.net, vm, h.opts.Log, tunnel{r.channel})
	r.listeners = followGuest(r.channel, r.forwards)
	keepClock(r.channel, r.log)
}

// identity is what makes a VM's guest differ from others.
func (h *Host) identity(rec store.Record, img *image.Image, net *guestapi.Network) (*identity, error) {
	key, err := userKey(h.store.Keys())
	if err != nil {
		return nil, err
	}
	config := img.Config
	config.User, config.WorkingDir = cmp.Or(rec.User, config.User), cmp.Or(rec.WorkingDir, config.WorkingDir)
	return &identity{
		imageEnv: img.Env, config: config,
		id: guestapi.Identity{
			Hostname: rec.Name, Network: net, HostKey: rec.HostKey, AuthorizedKeys: key,
			MachineID: rec.MachineID, Env: slices.Concat(img.Env, rec.Env), GrowRoot: rec.DiskSize > img.RootFSSize,
		},
	}, nil
}

// channelConfig says how the guest of a run is reached.
func (r *run) channelConfig() guestlink.ChannelConfig {
	return guestlink.ChannelConfig{
		Dial: r.machine.Channel, Prepare: r.prepare, Ended: r.machine.Done(),
		Emulated: r.accelerator == vmm.TCG, Log: r.log,
	}
}

// prepare tells a guest who it is, and gives it its folders.
func (r *run) prepare(ctx context.Context, link *guestlink.Link) error {
	if err := r.identity.give(ctx, link); err != nil {
		return err
	}
	return r.folders.mount(ctx, link)
}

// meet waits for the guest and gives it its identity. It gives up when the machine ends.
func meet(ctx context.Context, r *run, patience time.Duration) (*guestlink.Channel, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	channel, err := guestlink.Open(ctx, r.channelConfig())
	if err == nil {
		return channel, nil
	}
	select {
	case <-r.machine.Done():
		// What the monitor says of its end explains more than the broken channel.
		return nil, fmt.Errorf("the VM ended while it booted: %w", errors.Join(r.machine.Err(), err))
	default:
		return nil, fmt.Errorf("wait for guest: %w", err)
	}
}

// initrd returns the path of the initial filesystem that boots the image with our
// guest program.
func (h *Host) initrd(ctx context.Context, img *image.Image) (string, error) {
	guest, err := guestbin.Program()
	if err != nil {
		return "", err
	}
	return h.images.Initrd(ctx, img, guest)
}
