package machine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/smolvm/smolvm/internal/store"
)

// Status is where in its life a VM is.
type Status string

// The states of a VM.
const (
	StatusCreated Status = "created" // never started
	StatusRunning Status = "running"
	StatusPaused  Status = "paused"
	StatusStopped Status = "stopped"
	StatusDeleted Status = "deleted"
)

// VM is a virtual machine. Its methods may be called concurrently.
type VM struct {
	host *Host
	name string
	made bool // by this handle: Close deletes it, unless it is to be kept

	// life is held by the verbs that change the VM's state, one at a time.
	life sync.Mutex
	// ports is held while forwards change and that is noted, one change at a time.
	ports sync.Mutex

	mu      sync.Mutex
	claim   *store.Claim // nil while this process does not own the VM
	run     *run         // nil unless the VM runs in this process
	deleted bool
}

// Create makes a VM: its record and its disk. The caller owns it.
func (h *Host) Create(ctx context.Context, spec Spec) (*VM, error) {
	generated := spec.Name == ""
	spec, err := spec.complete()
	if err != nil {
		return nil, err
	}
	h.reap(ctx)
	img, err := h.Image(ctx, spec.Image)
	if err != nil {
		return nil, err
	}
	if spec.DiskSize == 0 {
		spec.DiskSize = img.RootFSSize
	}
	if spec.DiskSize < img.RootFSSize {
		return nil, fmt.Errorf("%w: disk size must be at least the image's, %d bytes", ErrInvalidOption, img.RootFSSize)
	}
	hostKey, _, err := newKey(spec.Name)
	if err != nil {
		return nil, err
	}
	rec := store.Record{
		Name: spec.Name, Created: time.Now().UTC(), Image: img.Name, ImageID: img.ID,
		MemoryMiB: spec.MemoryMiB, CPUs: spec.CPUs, DiskSize: spec.DiskSize, Env: spec.Env,
		Network: string(spec.Network), Ephemeral: !spec.Keep, HostKey: hostKey,
	}
	claim, err := h.store.Create(ctx, rec)
	for generated && errors.Is(err, store.ErrExists) {
		rec.Name = store.GenerateName()
		claim, err = h.store.Create(ctx, rec)
	}
	if err != nil {
		return nil, err
	}
	if err := createOverlay(ctx, filepath.Join(claim.Dir(), diskFile), img.RootFS, spec.DiskSize); err != nil {
		return nil, errors.Join(err, claim.Remove(context.WithoutCancel(ctx)))
	}
	return &VM{host: h, name: rec.Name, made: true, claim: claim}, nil
}

// Open returns a handle of a VM that exists. It does not own the VM until it
// starts it.
func (h *Host) Open(ctx context.Context, name string) (*VM, error) {
	h.reap(ctx)
	if _, err := h.store.Get(ctx, name); err != nil {
		return nil, err
	}
	return &VM{host: h, name: name}, nil
}

// List returns the VMs of the data directory by name. An Info whose Err is set
// belongs to a VM whose record cannot be read.
func (h *Host) List(ctx context.Context) ([]Info, error) {
	h.reap(ctx)
	entries, err := h.store.List(ctx)
	infos := make([]Info, len(entries))
	for i, e := range entries {
		infos[i] = infoOf(e)
	}
	return infos, err
}

// Name is the VM's name.
func (v *VM) Name() string { return v.name }

// Status tells where in its life the VM is now.
func (v *VM) Status(ctx context.Context) (Status, error) {
	info, err := v.Info(ctx)
	return info.Status, err
}

// running returns the VM's run, or why there is none for op.
func (v *VM) running(ctx context.Context, op string) (*run, error) {
	v.mu.Lock()
	r, deleted := v.run, v.deleted
	v.mu.Unlock()
	switch {
	case r != nil && r.alive():
		return r, nil
	case deleted:
		return nil, fmt.Errorf("cannot %s: %w", op, ErrDeleted)
	}
	info, err := v.Info(ctx)
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot %s: %w", op, err)
	case info.Status == StatusRunning:
		return nil, fmt.Errorf("cannot %s: %w: %q is run by process %d", op, store.ErrInUse, v.name, info.OwnerPID)
	}
	return nil, &NotRunningError{Op: op, Status: info.Status}
}

// own makes this process the VM's owner, if it is not already. The caller holds
// v.life.
func (v *VM) own(ctx context.Context) (*store.Claim, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.deleted:
		return nil, ErrDeleted
	case v.claim != nil:
		return v.claim, nil
	}
	claim, err := v.host.store.Claim(ctx, v.name)
	if err != nil {
		return nil, err
	}
	v.claim = claim
	return claim, nil
}
