// Package smolvm runs small virtual machines and puts what they serve on the
// host's localhost.
//
// [Launch] starts a VM, [VM.Run] runs a command in it, and [VM.ExposeLocal] makes a
// port of the guest answer on 127.0.0.1 and ::1 of the host, and nowhere else.
// A VM belongs to the program that made it: [VM.Close], or the program's end
// in any manner, stops and deletes it, unless it was made with [Keep].
//
// Programs with CAP_NET_ADMIN, such as root's, have the kernel forward
// connections (nftables). Others forward them through the guest channel (an SSH
// tunnel). Both answer alike.
package smolvm

import (
	"context"
	"errors"
	"iter"
	"net/netip"

	"github.com/smolvm/smolvm/internal/control"
	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/machine"
)

// VM is a virtual machine, whichever process owns it. Its methods may be called
// concurrently.
type VM struct {
	vm *control.VM
}

// Info is what can be said of a VM. Its JSON is a contract: names and meanings do
// not change within a version of SmolVM.
type Info = machine.Info

// Usage is what a running VM has used of the host.
type Usage = machine.Usage

// Status is where in its life a VM is.
type Status = machine.Status

// The states of a VM.
const (
	StatusCreated   = machine.StatusCreated  // never started
	StatusStarting  = machine.StatusStarting // somebody starts it at this moment
	StatusRunning   = machine.StatusRunning
	StatusPaused    = machine.StatusPaused
	StatusSuspended = machine.StatusSuspended
	StatusStopped   = machine.StatusStopped
	StatusDeleted   = machine.StatusDeleted
)

// New makes a VM, but does not start it. The image is made first if it is used
// for the first time, which takes about half a minute: see [OnProgress] and [Pull].
// The caller owes a [VM.Close].
//
// It fails with ErrExists if the name is taken, ErrInvalidName, ErrInvalidOption or
// ErrImageNotFound.
func New(ctx context.Context, opts ...Option) (*VM, error) {
	c := newConfig(opts)
	host, err := control.NewHost(c.host)
	if err != nil {
		return nil, err
	}
	vm, err := host.Create(ctx, c.spec)
	if err != nil {
		return nil, errors.Join(err, host.Close())
	}
	return &VM{vm}, nil
}

// Launch makes a VM and starts it. If it fails, nothing is left. The caller owes a
// [VM.Close].
func Launch(ctx context.Context, opts ...Option) (*VM, error) {
	vm, err := New(ctx, opts...)
	if err != nil {
		return nil, err
	}
	if err := vm.Start(ctx); err != nil {
		return nil, errors.Join(err, vm.vm.Delete(context.WithoutCancel(ctx)))
	}
	return vm, nil
}

// Open returns a VM that exists, whoever made it. If another process owns it, such as
// the command or another Go program, what is done with it is done by that
// process. It fails with ErrNotFound if there is none of that name. The caller owes
// a [VM.Close].
func Open(ctx context.Context, name string, opts ...Option) (*VM, error) {
	host, err := control.NewHost(newConfig(opts).host)
	if err != nil {
		return nil, err
	}
	vm, err := host.Open(ctx, name)
	if err != nil {
		return nil, errors.Join(err, host.Close())
	}
	return &VM{vm}, nil
}

// List returns the VMs of the data directory, in the order of their names. An
// Info with its Err set stands for a VM whose record cannot be read.
func List(ctx context.Context, opts ...Option) ([]Info, error) {
	host, err := control.NewHost(newConfig(opts).host)
	if err != nil {
		return nil, err
	}
	infos, err := host.List(ctx)
	return infos, errors.Join(err, host.Close())
}

// PortAvailable reports whether a host port can be bound on 127.0.0.1 and ::1
// now. Only [VM.ExposeLocal] can promise that it stays so.
func PortAvailable(port int) bool { return forward.PortAvailable(port) }

// Name is the VM's name.
func (v *VM) Name() string { return v.vm.Name() }

// Status tells where in its life the VM is.
func (v *VM) Status(ctx context.Context) (Status, error) { return v.vm.Status(ctx) }

// Info tells what is known of the VM now.
func (v *VM) Info(ctx context.Context) (Info, error) { return v.vm.Info(ctx) }

// IP is the guest's address. It is the zero Addr if the VM does not run, or has no
// address that the host can reach.
func (v *VM) IP() netip.Addr { return v.vm.IP() }

// Start boots the VM and returns once the guest takes commands. One that was suspended goes on
// from where it was. What was exposed when the VM was last stopped is exposed again. Starting a
// running VM does nothing. It fails with ErrCannotResume.
func (v *VM) Start(ctx context.Context) error { return v.vm.Start(ctx) }

// Stop asks the main process to end, if there is one, and gives it time for that: see [StopSignal]
// and [Grace]. Then it ends the guest's processes, writes its disk and powers it off. If that
// takes too long, or ctx ends, the VM is stopped the hard way. Stopping a VM that
// does not run does nothing.
func (v *VM) Stop(ctx context.Context, opts ...StopOption) error {
	var stop machine.StopOptions
	for _, opt := range opts {
		opt(&stop)
	}
	return v.vm.Stop(ctx, stop)
}

// Kill ends the VM at once, as when its plug is pulled: what the guest has not written to its
// disk is lost. The VM stays. Killing a VM that does not run does nothing.
func (v *VM) Kill(ctx context.Context) error { return v.vm.Kill(ctx) }

// Wait waits until the VM does not run any more, and is not about to be started again by its
// [Restart] policy, or ctx ends.
func (v *VM) Wait(ctx context.Context) error {
	_, err := v.vm.Wait(ctx)
	return err
}

// WaitMain is Wait, and tells what became of the VM's main process, even of one that was removed as
// it ended. It is nil if the VM has no main process.
func (v *VM) WaitMain(ctx context.Context) (*MainInfo, error) { return v.vm.Wait(ctx) }

// Pause stops the guest's processors until [VM.Resume]. Its memory, its connections and
// its forwards stay; who connects meanwhile waits. Commands cannot be started. Pausing a
// paused VM does nothing. It fails with ErrNotRunning.
func (v *VM) Pause(ctx context.Context) error { return v.vm.Pause(ctx) }

// Resume lets a paused VM run again, and starts a suspended one. If it is neither, that does
// nothing. It fails with ErrNotRunning.
func (v *VM) Resume(ctx context.Context) error { return v.vm.Resume(ctx) }

// Rename gives the VM another name, by which its guest knows itself from the next start
// on. It fails with ErrRunning while the VM runs, and with ErrExists or ErrInvalidName.
func (v *VM) Rename(ctx context.Context, name string) error { return v.vm.Rename(ctx, name) }

// SetEnv changes the environment of every command that is started in the guest from now
// on, SSH logins included: entries of the form "NAME=value". It is kept when the
// VM stops.
func (v *VM) SetEnv(ctx context.Context, entries ...string) error {
	return v.vm.ChangeEnv(ctx, machine.EnvChange{Set: entries})
}

// UnsetEnv takes variables that [Env] or SetEnv set out of the environment. Those that are
// not there do not matter.
func (v *VM) UnsetEnv(ctx context.Context, names ...string) error {
	return v.vm.ChangeEnv(ctx, machine.EnvChange{Unset: names})
}

// Delete stops the VM the hard way and removes it with its disk. Deleting a deleted
// VM does nothing.
func (v *VM) Delete(ctx context.Context) error { return v.vm.Delete(ctx) }

// Close gives the VM up: one that this program made is stopped and deleted, one
// made with [Keep] or from [Open] is stopped if this program runs it. What another
// process runs, such as one that [Background] started, it leaves alone. It takes no
// context, so that it can be deferred, and does nothing the second time.
func (v *VM) Close() error { return v.vm.Close() }

// ExposeLocal makes a port of the guest answer on localhost and returns the
// host port in use: any free one, or [HostPort], or if that is busy the next
// free one. It does not wait for a server: see [VM.WaitPort]. The same guest port
// may be exposed on several host ports; exposing it twice on the same one, or twice
// without HostPort, returns what there is. It is TCP unless [Over] says otherwise.
//
// It fails with ErrInvalidPort, ErrNotRunning, and if they were given, ErrPortInUse
// ([Strict]) and ErrTransport ([Transport]).
func (v *VM) ExposeLocal(ctx context.Context, guestPort int, opts ...PortOption) (hostPort int, err error) {
	forwards, err := v.vm.Expose(ctx, newRequest(forward.Request{GuestPort: guestPort}, opts))
	if err != nil {
		return 0, err
	}
	return forwards[0].HostPort, nil
}

// ExposeAll is [VM.ExposeLocal] for many ports at once: all of them are exposed, or if
// it fails none. The forwards come in the order of the specs and, within each, of
// its ports. Of the options [HostPort] and [Over] do not count: the specs say that.
func (v *VM) ExposeAll(ctx context.Context, specs []PortSpec, opts ...PortOption) ([]Forward, error) {
	return v.vm.Expose(ctx, requests(specs, opts)...)
}

// UnexposeLocal ends what ExposeLocal began. The host port is free at once and
// connections through it end. It does nothing if there is no such forward. Of
// the options [Over] alone counts.
func (v *VM) UnexposeLocal(ctx context.Context, hostPort, guestPort int, opts ...PortOption) error {
	req := newRequest(forward.Request{GuestPort: guestPort}, opts)
	return v.vm.Unexpose(ctx, forward.Pair{HostPort: hostPort, GuestPort: guestPort, Protocol: req.Protocol})
}

// UnexposeAll is [VM.UnexposeLocal] for many ports at once. If it fails, all of them
// are still exposed.
func (v *VM) UnexposeAll(ctx context.Context, forwards []Forward) error {
	pairs := make([]forward.Pair, len(forwards))
	for i, f := range forwards {
		pairs[i] = f.Pair
	}
	return v.vm.Unexpose(ctx, pairs...)
}

// Forwards returns what is exposed now, in the order of host ports. The transport, the
// health and the traffic are read from the kernel and the guest at that moment.
// It is empty if the VM does not run, or its owner does not answer.
func (v *VM) Forwards() []Forward {
	forwards, err := v.vm.Forwards(context.Background())
	if err != nil {
		return nil
	}
	return forwards
}

// ForwardEvents yields what happens to forwards: first those that exist, as
// [ForwardExposed], then every change of a transport or of a server's health, until
// ctx ends or the VM stops. A slow reader gets the newest state of each forward
// only, and holds nobody up. It fails with ErrNotRunning.
func (v *VM) ForwardEvents(ctx context.Context) (iter.Seq[ForwardEvent], error) {
	return v.vm.ForwardEvents(ctx)
}

// WaitPort waits until something in the guest listens on a port: TCP, unless [Over]
// says otherwise. It fails with ErrTimeout once the deadline of ctx has passed.
func (v *VM) WaitPort(ctx context.Context, guestPort int, opts ...PortOption) error {
	return v.vm.WaitPort(ctx, newRequest(forward.Request{GuestPort: guestPort}, opts))
}
