package smolvm

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/smolvm/smolvm/internal/control"
	"github.com/smolvm/smolvm/internal/machine"
	"github.com/smolvm/smolvm/internal/store"
)

// Snapshot is a copy of a VM that is kept: its disk and, if it ran, its memory. It outlives the VM.
// Its JSON is a contract, as that of [Info] is.
type Snapshot = machine.Snapshot

// Suspend saves the VM's memory to the disk and ends the VM. [VM.Start] lets it go on from where it
// was, with its programs and its connections within the guest, at any later time and after the host
// was off. What it had exposed is exposed again then. Suspending a suspended VM does nothing. It
// fails with ErrNotRunning.
func (v *VM) Suspend(ctx context.Context) error { return v.vm.Suspend(ctx) }

// maxCopies bounds how many copies are made at once.
const maxCopies = 1000

// Fork copies the VM, with its memory, its programs and its disk, into n new ones, which go on
// from where it is. The VM itself goes on after a moment in which it stands still. Each copy has a
// name, an address, an SSH host key, a machine ID and random numbers of its own; it has nothing
// exposed, and no command in it is one that was started by [VM.Run] and has not ended: those end in
// the copies. A VM that does not run is copied with its disk, and its copies boot.
//
// Of the options count [Name], which of several copies is followed by a number, [Env], which is
// added, [Keep], and those about this program. By default they are the ones that the VM was made or
// opened with. The caller owes each copy a [VM.Close]. If it fails, nothing is left.
func (v *VM) Fork(ctx context.Context, n int, opts ...Option) ([]*VM, error) {
	c := config{host: v.vm.Options()}
	for _, opt := range opts {
		opt(&c)
	}
	if n < 1 || n > maxCopies {
		return nil, fmt.Errorf("%w: number of copies must be 1 to %d, not %d", ErrInvalidOption, maxCopies, n)
	}
	draft, err := v.vm.Copy(ctx)
	if err != nil {
		return nil, err
	}
	copies, err := fork(ctx, draft, n, c)
	return copies, errors.Join(err, draft.Discard())
}

// fork makes copies of what is in a draft and starts them.
func fork(ctx context.Context, draft *store.Draft, n int, c config) ([]*VM, error) {
	snap, err := draft.Snapshot()
	if err != nil {
		return nil, err
	}
	copies, errs := make([]*VM, n), make([]error, n)
	var starting sync.WaitGroup
	free := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i := range n {
		own := c
		if own.spec.Name != "" && n > 1 {
			own.spec.Name = fmt.Sprintf("%s-%d", c.spec.Name, i+1)
		}
		free <- struct{}{}
		starting.Go(func() {
			defer func() { <-free }()
			copies[i], errs[i] = startCopy(ctx, snap, own)
		})
	}
	starting.Wait()
	if err := errors.Join(errs...); err != nil {
		for _, vm := range copies {
			if vm != nil {
				err = errors.Join(err, vm.vm.Delete(context.WithoutCancel(ctx)))
			}
		}
		return nil, err
	}
	return copies, nil
}

// startCopy makes a VM that is a copy, and starts it.
func startCopy(ctx context.Context, snap store.Snapshot, c config) (*VM, error) {
	host, err := control.NewHost(c.host)
	if err != nil {
		return nil, err
	}
	vm, err := host.CreateFrom(ctx, snap, c.spec)
	if err != nil {
		return nil, errors.Join(err, host.Close())
	}
	if err := vm.Start(ctx); err != nil {
		return nil, errors.Join(err, vm.Delete(context.WithoutCancel(ctx)))
	}
	return &VM{vm}, nil
}

// Snapshot makes a copy of the VM as it is now, and keeps it: with its memory if it runs or was
// suspended, else its disk. Without a name it gets one made of the VM's name and the time. A VM
// that runs goes on after a moment in which it stands still. It fails with ErrSnapshotExists or
// ErrInvalidName.
func (v *VM) Snapshot(ctx context.Context, name string) (Snapshot, error) {
	return v.vm.Snapshot(ctx, name)
}

// Revert puts the VM back to what it was when the snapshot was made: its disk, its memory, its
// environment and what it was made of. What it has on its disk now is lost. [VM.Start] lets it go
// on from there. The snapshot may be another VM's. It fails with ErrRunning while the VM runs, and with
// ErrSnapshotNotFound.
func (v *VM) Revert(ctx context.Context, snapshot string) error { return v.vm.Revert(ctx, snapshot) }

// Restore makes a new VM from a snapshot and starts it: it goes on from where the other VM was, as a
// copy that [VM.Fork] makes. The options are those of [VM.Fork]. If it fails, nothing is left, and
// the error may be ErrSnapshotNotFound. The caller owes a [VM.Close].
func Restore(ctx context.Context, snapshot string, opts ...Option) (*VM, error) {
	c := newConfig(opts)
	host, err := control.NewHost(c.host)
	if err != nil {
		return nil, err
	}
	snap, err := host.Snapshot(ctx, snapshot)
	if err = errors.Join(err, host.Close()); err != nil {
		return nil, err
	}
	return startCopy(ctx, snap, c)
}

// Snapshots returns the snapshots of the data directory, in the order of their names. One with
// its Err set cannot be read.
func Snapshots(ctx context.Context, opts ...Option) ([]Snapshot, error) {
	host, err := control.NewHost(newConfig(opts).host)
	if err != nil {
		return nil, err
	}
	snapshots, err := host.Snapshots(ctx)
	return snapshots, errors.Join(err, host.Close())
}

// RemoveSnapshot removes a snapshot. VMs that were made from it stay. It fails with
// ErrSnapshotNotFound.
func RemoveSnapshot(ctx context.Context, name string, opts ...Option) error {
	host, err := control.NewHost(newConfig(opts).host)
	if err != nil {
		return err
	}
	return errors.Join(host.RemoveSnapshot(ctx, name), host.Close())
}
