package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/smolvm/smolvm/internal/qcow2"
	"github.com/smolvm/smolvm/internal/store"
)

// Status is where in its life a VM is.
type Status string

// The states of a VM.
const (
	StatusCreated   Status = "created"  // never started
	StatusStarting  Status = "starting" // its owner boots it
	StatusRunning   Status = "running"
	StatusPaused    Status = "paused"
	StatusSuspended Status = "suspended" // its memory is saved, and the next start goes on from there
	StatusStopped   Status = "stopped"
	StatusDeleted   Status = "deleted"
)

// VM is a virtual machine as this process has it. Its methods may be called concurrently.
// What needs a VM that runs works in the process that owns it only.
type VM struct {
	host *Host
	made bool // by this handle: Close deletes it, unless it is to be kept

	// life is held by the verbs that change the VM's state, one at a time.
	life sync.Mutex
	// ports is held while forwards change and that is noted, one change at a time.
	ports sync.Mutex

	mu       sync.Mutex
	name     string
	claim    *store.Claim // nil while this process does not own the VM
	released func()       // to be called before the claim ends
	run      *run         // nil unless the VM runs in this process
	revival  *revival     // nil unless the VM is about to be started again, which has ended by itself
	pause    backOff      // before that
	starting bool
	deleted  bool
	retired  bool // this process is not to own the VM any more
}

// Create makes a VM: its record and its disk. The caller owns it.
func (h *Host) Create(ctx context.Context, spec Spec) (*VM, error) {
	generated := spec.Name == ""
	spec, err := spec.complete()
	if err != nil {
		return nil, err
	}
	if err := checkFolders(spec.Shares); err != nil {
		return nil, err
	}
	// Nobody removes the image before the record says that it is in use.
	img, release, err := h.images.Acquire(ctx, spec.Image, spec.Pull, h.opts.Progress)
	if err != nil {
		return nil, err
	}
	defer release()
	if spec.DiskSize == 0 {
		spec.DiskSize = img.RootFSSize
	}
	if spec.DiskSize < img.RootFSSize {
		return nil, fmt.Errorf("%w: disk size must be at least the image's, %d bytes", ErrInvalidOption, img.RootFSSize)
	}
	conduct, err := spec.conduct(img)
	if err != nil {
		return nil, err
	}
	design := store.Design{
		Image: img.Name, ImageID: img.ID, MemoryMiB: spec.MemoryMiB, CPUs: spec.CPUs, DiskSize: spec.DiskSize, Disks: spec.Disks,
		Env: spec.Env, Network: string(spec.Network), Shares: spec.Shares, Conduct: conduct,
	}
	v, err := h.claimNew(ctx, store.Record{Name: spec.Name, Design: design, Ephemeral: !spec.Keep}, generated)
	if err != nil {
		return nil, err
	}
	disk := qcow2.Overlay{Size: spec.DiskSize, Backing: img.RootFS, Format: qcow2.Raw}
	err = disk.Create(filepath.Join(v.claim.Dir(), v.claim.Record().DiskFile()))
	if err == nil {
		err = v.publish(spec, img.Config.ExposedPorts)
	}
	if err != nil {
		return nil, v.unmake(ctx, err)
	}
	return v, nil
}

// claimNew makes a VM without a disk. If its name was generated, it gets another one if that is
// taken.
func (h *Host) claimNew(ctx context.Context, rec store.Record, generated bool) (*VM, error) {
	var err error
	if rec.HostKey, _, err = newKey(rec.Name); err != nil {
		return nil, err
	}
	rec.Created = time.Now().UTC()
	claim, err := h.store.Create(ctx, rec)
	for generated && errors.Is(err, store.ErrExists) {
		rec.Name = store.GenerateName()
		claim, err = h.store.Create(ctx, rec)
	}
	if err != nil {
		return nil, err
	}
	v := &VM{host: h, name: rec.Name, made: true, claim: claim}
	if err := v.claimed(); err != nil {
		return nil, errors.Join(err, claim.Remove(context.WithoutCancel(ctx)))
	}
	return v, nil
}

// unmake removes a VM of which not all could be made, because of err.
func (v *VM) unmake(ctx context.Context, err error) error {
	return errors.Join(err, v.giveUp(func() error { return v.claim.Remove(context.WithoutCancel(ctx)) }))
}

// Open returns a handle of a VM that exists. It does not own the VM until it
// starts it.
func (h *Host) Open(ctx context.Context, name string) (*VM, error) {
	// One that is damaged can be deleted still.
	if _, err := h.store.Get(ctx, name); err != nil && !errors.Is(err, store.ErrDamaged) {
		return nil, err
	}
	return &VM{host: h, name: name}, nil
}

// List returns the VMs of the data directory by name, as their records tell. An Info whose
// Err is set belongs to a VM whose record cannot be read.
func (h *Host) List(ctx context.Context) ([]Info, error) {
	entries, err := h.store.List(ctx)
	infos := make([]Info, len(entries))
	for i, e := range entries {
		infos[i] = infoOf(e)
	}
	return infos, err
}

// Name is the VM's name.
func (v *VM) Name() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.name
}

// Dir is the VM's directory.
func (v *VM) Dir() string { return v.host.store.Dir(v.Name()) }

// Owned tells whether this process is the VM's owner.
func (v *VM) Owned() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.claim != nil
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
		return nil, fmt.Errorf("cannot %s: %w: %q is run by process %d", op, store.ErrInUse, info.Name, info.Owner.PID)
	}
	return nil, &NotRunningError{Op: op, Status: info.Status}
}

// answering is running for what needs a guest that answers: one that is not paused.
func (v *VM) answering(ctx context.Context, op string) (*run, error) {
	r, err := v.running(ctx, op)
	if err == nil && r.paused.Load() {
		return nil, &NotRunningError{Op: op, Status: StatusPaused}
	}
	return r, err
}

// own makes this process the VM's owner, if it is not already, and also returns the run that
// the VM has here, or nil. The caller holds v.life.
func (v *VM) own(ctx context.Context) (*store.Claim, *run, error) {
	v.mu.Lock()
	name, claim, r, deleted, retired := v.name, v.claim, v.run, v.deleted, v.retired
	v.mu.Unlock()
	switch {
	case deleted:
		return nil, nil, ErrDeleted
	case retired:
		return nil, nil, fmt.Errorf("%w: process %d has just given it up", store.ErrInUse, os.Getpid())
	case claim != nil:
		return claim, r, nil
	}
	claim, err := v.host.store.Claim(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	v.mu.Lock()
	v.claim = claim
	v.mu.Unlock()
	if err := v.claimed(); err != nil {
		return nil, nil, errors.Join(err, v.giveUp(claim.Release))
	}
	return claim, nil, nil
}

// claimed tells who wants to know that this process is the VM's owner now.
func (v *VM) claimed() error {
	if v.host.opts.Claimed == nil {
		return nil
	}
	released, err := v.host.opts.Claimed(v)
	if err != nil {
		return fmt.Errorf("become owner of VM: %w", err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.released = released
	return nil
}

// unclaimed tells those whom claimed told that this process is no owner any more.
func (v *VM) unclaimed() {
	v.mu.Lock()
	released := v.released
	v.released = nil
	v.mu.Unlock()
	if released != nil {
		released()
	}
}

// giveUp ends the ownership by end. The caller holds v.life. If end fails, this process is
// the owner still, though those who were told of the end believe otherwise.
func (v *VM) giveUp(end func() error) error {
	v.unclaimed()
	if err := end(); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.claim = nil
	return nil
}
