// Package machine is a VM's life: created, running, stopped, deleted. It ties
// together the store, images, network, monitor, guest channel and forwarding.
package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/layer"
	"github.com/smolvm/smolvm/internal/network"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/template"
	"github.com/smolvm/smolvm/internal/vmm"
	"github.com/smolvm/smolvm/internal/vmm/qemu"
)

// templatesDir is where templates are, in the store's cache.
const templatesDir = "templates"

// Options say where VMs live and who hears of them.
type Options struct {
	DataDir     string // default: store.DefaultRoot
	Log         *slog.Logger
	Progress    func(image.Progress) // may be nil
	Accelerator vmm.Accelerator      // empty: KVM if it works, else TCG
	ColdBoot    bool                 // boot guests, do not go on from templates
	// DiscardMemory has a VM boot that was suspended, or copied while it ran.
	DiscardMemory bool
	// Detached lets the VMs that are started outlive this process. Another owner can then
	// take them over.
	Detached bool
	// Claimed is called when this process has become the owner of a VM, and the function that it
	// returns before it is the owner no longer. It may be nil.
	Claimed func(*VM) (released func(), err error)
	Version string // of SmolVM, for people
	// InsecureRegistries allows plain HTTP, and TLS with any certificate, where images are fetched.
	InsecureRegistries bool
}

// Host is this computer as the VMs of one data directory use it.
// Its methods may be called concurrently.
type Host struct {
	opts      Options
	store     *store.Store
	images    *image.Store
	templates *template.Store
	layers    *layer.Store
	network   *network.Host
	driver    *qemu.Driver
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
		opts:      opts,
		store:     st,
		images:    image.NewStore(image.Options{Dir: st.Images(), Shared: shared, Log: opts.Log, Insecure: opts.InsecureRegistries}),
		templates: template.NewStore(filepath.Join(st.Cache(), templatesDir), opts.Log),
		layers:    layer.NewStore(st.Layers()),
		network:   network.NewHost(network.Options{Log: opts.Log}),
		driver:    qemu.NewDriver(qemu.Options{CacheDir: st.Cache(), Log: opts.Log}),
	}, nil
}

// Close gives back what the Host keeps open. A Host that is used again opens it
// again.
func (h *Host) Close() error { return h.network.Close() }

// Reap removes what crashed programs left: VMs that were theirs, with their disks, and
// the network of VMs that are gone. It returns the names of the VMs that live on without an
// owner. Every verb begins with it. That it fails is no reason for the verb to fail.
func (h *Host) Reap(ctx context.Context) (orphans []string) {
	reaped, err := h.store.Reap(ctx, func(crashed []store.Record) error { return h.detach(ctx, crashed) })
	if err != nil {
		h.opts.Log.Warn("could not remove what a crash left", "error", err)
		return reaped.Orphans
	}
	if len(reaped.Crashed) > 0 {
		h.cleanLayers()
	}
	for _, rec := range reaped.Crashed {
		h.opts.Log.Info("settled VM that ended without its owner", "vm", rec.Name, "removed", rec.Ephemeral)
	}
	return reaped.Orphans
}

// detach removes what VMs that ended left of their network.
func (h *Host) detach(ctx context.Context, ended []store.Record) error {
	if h.network.Capable() != nil {
		return nil // they had none that this user could have made
	}
	var errs []error
	for _, rec := range ended {
		// Its monitor was killed with its owner, but may not be gone yet.
		if rec.Run != nil && rec.Run.Interface != nil {
			errs = append(errs, h.network.Detach(ctx, rec.Run.Interface.Name, rec.Run.Interface.Index))
		}
	}
	return errors.Join(append(errs, h.network.Reap(ctx))...)
}

// Root is the path of the data directory.
func (h *Host) Root() string { return h.store.Root() }

// Writable tells why the data directory cannot be written, if that is so.
func (h *Host) Writable() error { return h.store.Writable() }

// Entry is what the data directory tells of a VM.
func (h *Host) Entry(ctx context.Context, name string) (store.Entry, error) {
	return h.store.Get(ctx, name)
}
