package control

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/smolvm/smolvm/internal/machine"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/vmm"
)

// Options say where VMs live, and by whom they are run.
type Options struct {
	machine.Options
	// Background lets VMs be run by processes of their own rather than by this one.
	Background bool
	// Program is what such a process runs; default: smolvm in the PATH.
	Program string
}

// Host is this computer as the VMs of one data directory use it, whoever owns them. Its
// methods may be called concurrently.
type Host struct {
	*machine.Host
	opts Options

	mu      sync.Mutex
	servers []*server // all that there ever were
}

// askTimeout bounds how long the owner of a VM may take to tell about it when it is one of
// many that are asked.
const askTimeout = 5 * time.Second

// drainTimeout bounds how long an owner that ends waits for its clients.
const drainTimeout = 2 * time.Second

// NewHost opens the data directory. The caller owes a Close.
func NewHost(opts Options) (*Host, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	h := &Host{}
	opts.Claimed = h.serve
	host, err := machine.NewHost(opts.Options)
	if err != nil {
		return nil, err
	}
	h.Host, h.opts = host, opts
	return h, nil
}

// serve serves a VM that this process owns to the others.
func (h *Host) serve(vm *machine.VM) (stop func(), err error) {
	s, err := serve(vm.Dir(), vm, h.opts.Version, h.opts.Log.With("vm", vm.Name()))
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.servers = append(h.servers, s)
	return s.stop, nil
}

// drain lets the clients of VMs that are owned no longer have their answers.
func (h *Host) drain() {
	h.mu.Lock()
	servers := h.servers
	h.mu.Unlock()
	for _, s := range servers {
		s.drain(drainTimeout)
	}
}

// settle removes what crashes left, and gives VMs that lost their owner a new one. It fails
// only where nothing can be done at all.
func (h *Host) settle(ctx context.Context) error {
	if err := h.Writable(); err != nil {
		return err
	}
	var adopting sync.WaitGroup
	for _, name := range h.Reap(ctx) {
		adopting.Go(func() {
			err := h.adopt(ctx, name)
			// It may have ended or been removed meanwhile, or another process may have been faster.
			settled := errors.Is(err, vmm.ErrGone) || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInUse)
			if err != nil && !settled && ctx.Err() == nil {
				h.opts.Log.Warn("could not take over a VM whose owner died", "vm", name, "error", err)
			}
		})
	}
	adopting.Wait()
	return nil
}

// Create makes a VM, which this process owns.
func (h *Host) Create(ctx context.Context, spec machine.Spec) (*VM, error) {
	if err := h.settle(ctx); err != nil {
		return nil, err
	}
	local, err := h.Host.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	return newVM(h, local), nil
}

// CreateFrom makes a VM that is a copy, which this process owns.
func (h *Host) CreateFrom(ctx context.Context, snap store.Snapshot, spec machine.Spec) (*VM, error) {
	local, err := h.Host.CreateFrom(ctx, snap, spec)
	if err != nil {
		return nil, err
	}
	return newVM(h, local), nil
}

// Snapshots returns all snapshots, by name.
func (h *Host) Snapshots(ctx context.Context) ([]machine.Snapshot, error) {
	if err := h.settle(ctx); err != nil {
		return nil, err
	}
	return h.Host.Snapshots(ctx)
}

// RemoveSnapshot removes a snapshot.
func (h *Host) RemoveSnapshot(ctx context.Context, name string) error {
	if err := h.settle(ctx); err != nil {
		return err
	}
	return h.Host.RemoveSnapshot(ctx, name)
}

// Open returns a VM that exists.
func (h *Host) Open(ctx context.Context, name string) (*VM, error) {
	if err := h.settle(ctx); err != nil {
		return nil, err
	}
	local, err := h.Host.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return newVM(h, local), nil
}

// List tells about all VMs, by name.
func (h *Host) List(ctx context.Context) ([]machine.Info, error) {
	if err := h.settle(ctx); err != nil {
		return nil, err
	}
	infos, err := h.Host.List(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var asking sync.WaitGroup
	for i, info := range infos {
		if info.Owner.PID == 0 {
			continue
		}
		asking.Go(func() {
			c := newClient(info.Name, info.Dir, h.opts.Log)
			switch fresh, err := c.Info(ctx); {
			case err == nil:
				infos[i] = fresh
			case !errors.Is(err, errNoOwner):
				infos[i].Err = err
			}
		})
	}
	asking.Wait()
	return infos, nil
}

// Images returns all images, with the VMs that are made on them.
func (h *Host) Images(ctx context.Context) ([]machine.ImageInfo, error) {
	if err := h.settle(ctx); err != nil {
		return nil, err
	}
	return h.Host.Images(ctx)
}

// RemoveImage removes an image.
func (h *Host) RemoveImage(ctx context.Context, name string) error {
	if err := h.settle(ctx); err != nil {
		return err
	}
	return h.Host.RemoveImage(ctx, name)
}

// Prune removes what is not in use.
func (h *Host) Prune(ctx context.Context, opts machine.PruneOptions) ([]machine.Pruned, error) {
	if err := h.settle(ctx); err != nil {
		return nil, err
	}
	return h.Host.Prune(ctx, opts)
}
