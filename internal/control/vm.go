package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/netip"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/machine"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/vmm"
)

const (
	// ownerPause is how often it is looked for an owner that is about to serve, or to end.
	ownerPause = 5 * time.Millisecond
	// ownerTimeout bounds that: both are a matter of milliseconds on an idle host.
	ownerTimeout = 10 * time.Second
)

// VM is a virtual machine, whoever owns it. Its methods may be called concurrently.
type VM struct {
	host  *Host
	local *machine.VM
}

func newVM(host *Host, local *machine.VM) *VM { return &VM{host: host, local: local} }

// Name is the VM's name.
func (v *VM) Name() string { return v.local.Name() }

// client returns a client for the VM's owner.
func (v *VM) client() *client { return newClient(v.Name(), v.local.Dir(), v.host.opts.Log) }

// with does something with the VM where it is owned: here, by another process, or, if nobody
// owns it, here without owning it, which knows what to say about a VM that does not run. A VM
// that lives on without its owner gets a new one first.
func with[T any](ctx context.Context, v *VM, do func(target) (T, error)) (T, error) {
	deadline := time.Now().Add(ownerTimeout)
	for {
		if v.local.Owned() {
			return do(v.local)
		}
		result, err := do(v.client())
		// That another process owns it is said by one that has just handed it over.
		if !errors.Is(err, errNoOwner) && !errors.Is(err, store.ErrInUse) {
			return result, err
		}
		entry, err := v.host.Entry(ctx, v.Name())
		switch {
		case errors.Is(err, store.ErrDamaged) || errors.Is(err, store.ErrNotFound):
			return do(v.local)
		case err != nil:
			return result, err
		case entry.Orphaned():
			err := v.host.adopt(ctx, v.Name())
			if err != nil && !errors.Is(err, vmm.ErrGone) && !errors.Is(err, store.ErrInUse) {
				return result, err
			}
		case entry.Owned || entry.Alive:
			// The owner has just begun, or it or its monitor is about to end.
			if time.Now().After(deadline) {
				return result, fmt.Errorf("%w: its owner, process %d, does not answer", store.ErrInUse, entry.OwnerPID)
			}
			if err := pause(ctx, ownerPause); err != nil {
				return result, err
			}
		default:
			result, err := do(v.local)
			if !errors.Is(err, store.ErrInUse) || time.Now().After(deadline) {
				return result, err
			}
			// Somebody took it in between: the next look tells who.
			if err := pause(ctx, ownerPause); err != nil {
				return result, err
			}
		}
	}
}

// only is with for what has no result.
func only(ctx context.Context, v *VM, do func(target) error) error {
	_, err := with(ctx, v, func(t target) (struct{}, error) { return struct{}{}, do(t) })
	return err
}

// settled is only for verbs that do no harm if they are done twice: an owner that ends
// meanwhile, as one does when its VM is stopped, is no failure of theirs.
func settled(ctx context.Context, v *VM, do func(target) error) error {
	_, err := settledWith(ctx, v, func(t target) (struct{}, error) { return struct{}{}, do(t) })
	return err
}

// settledWith is settled for what has a result.
func settledWith[T any](ctx context.Context, v *VM, do func(target) (T, error)) (T, error) {
	for {
		result, err := with(ctx, v, do)
		if !errors.Is(err, errOwnerLost) || ctx.Err() != nil {
			return result, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Info tells what is known of the VM now.
func (v *VM) Info(ctx context.Context) (machine.Info, error) {
	return with(ctx, v, func(t target) (machine.Info, error) { return t.Info(ctx) })
}

// Status tells where in its life the VM is.
func (v *VM) Status(ctx context.Context) (machine.Status, error) {
	info, err := v.Info(ctx)
	return info.Status, err
}

// IP is the guest's address, if the host can reach one.
func (v *VM) IP() netip.Addr {
	info, err := v.Info(context.Background())
	if err != nil {
		return netip.Addr{}
	}
	return info.IP
}

// Start starts the VM, in this process or, with Options.Background, in one of its own.
func (v *VM) Start(ctx context.Context) error {
	if !v.host.opts.Background {
		return settled(ctx, v, func(t target) error { return t.Start(ctx) })
	}
	deadline := time.Now().Add(ownerTimeout)
	for {
		err := errNoOwner
		if !v.local.Owned() {
			err = v.client().Start(ctx)
		}
		if errors.Is(err, errNoOwner) || errors.Is(err, errOwnerLost) {
			err = v.host.startOwner(ctx, v.local, false)
		}
		// Somebody owns it and does not serve it: yet, or no more.
		if !errors.Is(err, store.ErrInUse) || time.Now().After(deadline) {
			return err
		}
		if err := pause(ctx, ownerPause); err != nil {
			return err
		}
	}
}

// Stop stops the VM.
func (v *VM) Stop(ctx context.Context, opts machine.StopOptions) error {
	return settled(ctx, v, func(t target) error { return t.Stop(ctx, opts) })
}

// Kill ends the VM at once.
func (v *VM) Kill(ctx context.Context) error {
	return settled(ctx, v, func(t target) error { return t.Kill(ctx) })
}

// Wait waits until the VM does not run any more, and tells what became of its main process.
func (v *VM) Wait(ctx context.Context) (*machine.MainInfo, error) {
	return settledWith(ctx, v, func(t target) (*machine.MainInfo, error) { return t.Wait(ctx) })
}

// Pause stops the guest's processors.
func (v *VM) Pause(ctx context.Context) error {
	return settled(ctx, v, func(t target) error { return t.Pause(ctx) })
}

// Resume lets a paused VM run again, or a suspended one.
func (v *VM) Resume(ctx context.Context) error {
	err := settled(ctx, v, func(t target) error { return t.Resume(ctx) })
	var stopped *machine.NotRunningError
	if errors.As(err, &stopped) && stopped.Status == machine.StatusSuspended {
		return v.Start(ctx)
	}
	return err
}

// Suspend saves the VM's memory and ends it.
func (v *VM) Suspend(ctx context.Context) error {
	return settled(ctx, v, func(t target) error { return t.Suspend(ctx) })
}

// Revert puts the VM back to what it was when a snapshot was made.
func (v *VM) Revert(ctx context.Context, snapshot string) error {
	return only(ctx, v, func(t target) error { return t.Revert(ctx, snapshot) })
}

// Options are those of the VM's host.
func (v *VM) Options() Options { return v.host.opts }

// Copy makes a copy of the VM as it is now, in a draft. The caller owes a Discard.
func (v *VM) Copy(ctx context.Context) (*store.Draft, error) {
	d, err := v.host.Draft(ctx)
	if err != nil {
		return nil, err
	}
	if err := only(ctx, v, func(t target) error { return t.Capture(ctx, d.Dir) }); err != nil {
		return nil, errors.Join(err, d.Discard())
	}
	return d, nil
}

// Commit makes an image of the VM's disk as it is now.
func (v *VM) Commit(ctx context.Context, name string, opts machine.CommitOptions) (_ machine.ImageInfo, err error) {
	// Rather now than when the copy is made.
	if err := machine.CheckCommit(name, opts); err != nil {
		return machine.ImageInfo{}, err
	}
	d, err := v.host.Draft(ctx)
	if err != nil {
		return machine.ImageInfo{}, err
	}
	defer func() { err = errors.Join(err, d.Discard()) }()
	if err := only(ctx, v, func(t target) error { return t.CaptureDisk(ctx, d.Dir) }); err != nil {
		return machine.ImageInfo{}, err
	}
	return v.host.CommitImage(ctx, d, name, opts)
}

// Snapshot makes a snapshot of the VM as it is now. Without a name it gets one.
func (v *VM) Snapshot(ctx context.Context, name string) (_ machine.Snapshot, err error) {
	if name != "" {
		// Rather now than when all is done.
		if _, err := v.host.Snapshot(ctx, name); err == nil {
			return machine.Snapshot{}, fmt.Errorf("%w: %q", store.ErrSnapshotExists, name)
		} else if !errors.Is(err, store.ErrSnapshotNotFound) {
			return machine.Snapshot{}, err
		}
	}
	d, err := v.Copy(ctx)
	if err != nil {
		return machine.Snapshot{}, err
	}
	defer func() { err = errors.Join(err, d.Discard()) }()
	return v.host.KeepSnapshot(ctx, d, name)
}

// Delete removes the VM.
func (v *VM) Delete(ctx context.Context) error {
	err := settled(ctx, v, func(t target) error { return t.Delete(ctx) })
	if errors.Is(err, store.ErrNotFound) {
		return nil // its owner removed it, and ended before it could say so
	}
	return err
}

// Rename gives a VM that does not run another name.
func (v *VM) Rename(ctx context.Context, name string) error {
	info, err := v.Info(ctx)
	switch {
	case err != nil:
		return err
	case info.Owner.PID != 0 && !v.local.Owned():
		return fmt.Errorf("cannot rename VM: %w: stop it first", machine.ErrRunning)
	}
	return v.local.Rename(ctx, name)
}

// ChangeEnv changes the environment of commands that are started from now on.
func (v *VM) ChangeEnv(ctx context.Context, change machine.EnvChange) error {
	return settled(ctx, v, func(t target) error { return t.ChangeEnv(ctx, change) })
}

// Close gives the VM up.
func (v *VM) Close() error { return v.local.Close() }

// StartCommand starts a command in the guest.
func (v *VM) StartCommand(ctx context.Context, c machine.Command) (machine.Process, error) {
	return with(ctx, v, func(t target) (machine.Process, error) { return t.StartCommand(ctx, c) })
}

// Expose makes ports of the guest answer on localhost: all, or none.
func (v *VM) Expose(ctx context.Context, reqs ...forward.Request) ([]forward.Forward, error) {
	return with(ctx, v, func(t target) ([]forward.Forward, error) { return t.Expose(ctx, reqs...) })
}

// Unexpose ends forwards, those that there are.
func (v *VM) Unexpose(ctx context.Context, pairs ...forward.Pair) error {
	return only(ctx, v, func(t target) error { return t.Unexpose(ctx, pairs...) })
}

// Forwards returns what is exposed now.
func (v *VM) Forwards(ctx context.Context) ([]forward.Forward, error) {
	info, err := v.Info(ctx)
	return info.Forwards, err
}

// ForwardEvents yields what happens to the forwards.
func (v *VM) ForwardEvents(ctx context.Context) (iter.Seq[forward.Event], error) {
	return with(ctx, v, func(t target) (iter.Seq[forward.Event], error) { return t.ForwardEvents(ctx) })
}

// WaitPort waits until something in the guest listens on a port.
func (v *VM) WaitPort(ctx context.Context, req forward.Request) error {
	return settled(ctx, v, func(t target) error { return t.WaitPort(ctx, req) })
}

// Files moves files into the guest or out of it.
func (v *VM) Files(ctx context.Context, op guestapi.Files, in io.Reader, out io.Writer) error {
	return only(ctx, v, func(t target) error { return t.Files(ctx, op, in, out) })
}

// Dial connects to an address in the guest.
func (v *VM) Dial(ctx context.Context, address string) (net.Conn, error) {
	return with(ctx, v, func(t target) (net.Conn, error) { return t.Dial(ctx, address) })
}

// SSH returns how SSH clients log in to the guest.
func (v *VM) SSH(ctx context.Context) (machine.SSHAccess, error) { return v.host.SSH(ctx, v.Name()) }

// Logs returns a log of the VM.
func (v *VM) Logs(ctx context.Context, opts machine.LogOptions) (io.ReadCloser, error) {
	return v.host.Logs(ctx, v.Name(), opts)
}
