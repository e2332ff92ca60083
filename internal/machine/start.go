package machine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestbin"
	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/vmm"
)

// bootTimeout bounds the time from QEMU's start to a guest that takes commands:
// two seconds under emulation on an idle host, many times that on a busy one.
const bootTimeout = 2 * time.Minute

// Start boots the VM and returns once the guest takes commands.
func (v *VM) Start(ctx context.Context) error {
	v.life.Lock()
	defer v.life.Unlock()
	claim, err := v.own(ctx)
	if err != nil {
		return fmt.Errorf("cannot start VM: %w", err)
	}
	v.mu.Lock()
	r := v.run
	v.mu.Unlock()
	if r != nil && r.alive() {
		return nil
	}
	r, err = v.boot(ctx, claim)
	if err != nil {
		return errors.Join(fmt.Errorf("cannot start VM: %w", timedOut(err)), claim.Update(markStopped), v.disown())
	}
	v.mu.Lock()
	v.run = r
	v.mu.Unlock()
	go v.watch(r)
	v.exposeAgain(ctx, r, claim)
	return nil
}

func markStopped(r *store.Record) { r.Running, r.Interface = false, nil }

// boot makes a run. If it fails, nothing is left of it.
func (v *VM) boot(ctx context.Context, claim *store.Claim) (_ *run, err error) {
	h, rec := v.host, claim.Record()
	r := &run{log: h.opts.Log.With("vm", v.name), ended: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.release())
		}
	}()
	img, err := h.images.Find(rec.Image, rec.ImageID)
	if err != nil {
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
		r.log.Warn("guest code is emulated, which is slow and no security boundary", "reason", r.acceleratorReason)
	}
	net, err := h.connect(ctx, v.name, NetworkMode(rec.Network), r.log)
	if err != nil {
		return nil, err
	}
	r.net = net
	// From here on a crash of this program leaves something to be reaped.
	if err = claim.Update(func(r *store.Record) { r.Running, r.Started, r.Interface = true, true, net.hostInterface() }); err != nil {
		return nil, err
	}
	key, err := userKey(h.store.Keys())
	if err != nil {
		return nil, err
	}
	r.machine, err = h.driver.Start(ctx, vmm.Config{
		Dir: claim.Dir(), Kernel: img.Kernel, Initrd: initrd, Disk: filepath.Join(claim.Dir(), diskFile),
		MemoryMiB: rec.MemoryMiB, CPUs: rec.CPUs, Accelerator: r.accelerator, Network: net.device,
	})
	if err != nil {
		return nil, err
	}
	identity := guestapi.Identity{
		Hostname: v.name, Network: net.guest, HostKey: rec.HostKey, AuthorizedKeys: key,
		Env: append(img.Env[:len(img.Env):len(img.Env)], rec.Env...), GrowRoot: rec.DiskSize > img.RootFSSize,
	}
	if r.channel, err = meet(ctx, r, identity); err != nil {
		return nil, err
	}
	r.forwards = h.forwards(net, v.name, h.opts.Log, tunnel{r.channel})
	r.listeners = followGuest(r.channel, r.forwards)
	// Begun early, so that the first expose need not wait for it. The manager keeps
	// the result and says it when it matters.
	go func() { _ = r.forwards.Prove(context.WithoutCancel(ctx)) }()
	return r, nil
}

// meet waits for the guest and gives it its identity, and again should the channel be
// lost. It gives up when the machine ends.
func meet(ctx context.Context, r *run, identity guestapi.Identity) (*guestlink.Channel, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	channel, err := guestlink.Open(ctx, guestlink.ChannelConfig{
		Dial: r.machine.Channel,
		Prepare: func(ctx context.Context, link *guestlink.Link) error {
			id := identity
			id.Time = time.Now()
			id.Entropy = make([]byte, 64)
			rand.Read(id.Entropy) // never fails
			return link.Configure(ctx, id)
		},
		Ended:    r.machine.Done(),
		Emulated: r.accelerator == vmm.TCG,
		Log:      r.log,
	})
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

// accelerator chooses how guest code is executed, and says why.
func (h *Host) accelerator(ctx context.Context, kernel, initrd string) (vmm.Accelerator, string, error) {
	if h.opts.Accelerator != "" {
		return h.opts.Accelerator, "asked for", nil
	}
	return h.driver.Accelerator(ctx, kernel, initrd)
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
