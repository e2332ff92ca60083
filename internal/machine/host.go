// Package machine is a VM's life: created, running, stopped, deleted. It ties
// together the store, images, network, monitor, guest channel and forwarding.
package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/network"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/vmm"
	"github.com/smolvm/smolvm/internal/vmm/qemu"
)

// Options say where VMs live and who hears of them.
type Options struct {
	DataDir     string // default: store.DefaultRoot
	Log         *slog.Logger
	Progress    func(image.Progress) // may be nil
	Accelerator vmm.Accelerator      // empty: KVM if it works, else TCG
}

// Host is this computer as the VMs of one data directory use it.
// Its methods may be called concurrently.
type Host struct {
	opts    Options
	store   *store.Store
	images  *image.Store
	network *network.Host
	driver  *qemu.Driver
}

// NewHost opens the data directory.
func NewHost(opts Options) (*Host, error) {
	if opts.DataDir == "" {
		root, err := store.DefaultRoot()
		if err != nil {
			return nil, err
		}
		opts.DataDir = root
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	switch opts.Accelerator {
	case "", vmm.KVM, vmm.TCG:
	default:
		return nil, fmt.Errorf("%w: accelerator must be %s or %s, not %q", ErrInvalidOption, vmm.KVM, vmm.TCG, opts.Accelerator)
	}
	st, err := store.Open(opts.DataDir)
	if err != nil {
		return nil, err
	}
	var shared []string
	if system := store.SystemImages(); system != st.Images() {
		shared = append(shared, system)
	}
	return &Host{
		opts:    opts,
		store:   st,
		images:  image.NewStore(st.Images(), shared, opts.Log),
		network: network.NewHost(network.Options{Log: opts.Log}),
		driver:  qemu.NewDriver(qemu.Options{CacheDir: st.Cache(), Log: opts.Log}),
	}, nil
}

// Close gives back what the Host keeps open. A Host that is used again opens it
// again.
func (h *Host) Close() error { return h.network.Close() }

// reap removes what crashed programs left: VMs that were theirs, with their disks, and
// the network of VMs that are gone. Every verb begins with it. That it fails is no
// reason for the verb to fail.
func (h *Host) reap(ctx context.Context) {
	crashed, err := h.store.Reap(ctx)
	errs := []error{err}
	for _, rec := range crashed {
		h.opts.Log.Info("settled VM of a program that died", "vm", rec.Name, "removed", rec.Ephemeral)
	}
	if h.network.Capable() == nil {
		for _, rec := range crashed {
			// Its monitor was killed with its owner, but may not be gone yet.
			if i := rec.Interface; i != nil {
				errs = append(errs, h.network.Detach(ctx, i.Name, i.Index))
			}
		}
		errs = append(errs, h.network.Reap(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		h.opts.Log.Warn("could not remove what a crash left", "error", err)
	}
}

// Image returns the image called name, which is made first if there is none.
func (h *Host) Image(ctx context.Context, name string) (*image.Image, error) {
	return h.images.Ensure(ctx, name, h.opts.Progress)
}
