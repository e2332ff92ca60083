package smolvm

import (
	"slices"
	"syscall"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/machine"
)

// Main gives the VM a main process: a command that runs whenever the VM is started, and with whose
// end the VM ends. It has no input, and what it writes goes to the VM's [ConsoleLog]. It runs in the
// directory and as the user that the image names. It belongs to no program: it goes on however the
// VM's owner ends, and in copies.
//
// If it cannot be started, [VM.Start] fails with a [*StartError]. How it ended is in [Info.Main].
func Main(program string, args ...string) Option {
	command := append([]string{program}, args...)
	return func(c *config) { c.spec.Main = &machine.MainSpec{Args: command} }
}

// ImageCommand makes the image's own command the VM's main process, as [Main] does: its entry point
// with the given arguments, or without any with its own. By itself an image's command is not run. If
// the image has none, the arguments are the command, and without any there is no main process.
func ImageCommand(args ...string) Option {
	args = slices.Clone(args)
	return func(c *config) { c.spec.Main = &machine.MainSpec{Image: true, Args: args} }
}

// ComposeCommand is what [ImageCommand] would run, of an image's entry point and command, which
// [Info] has of a running VM.
func ComposeCommand(entrypoint, cmd, args []string) []string {
	return machine.ComposeCommand(entrypoint, cmd, args)
}

// MainInfo is what is known of a VM's main process.
type MainInfo = machine.MainInfo

// Restart has the VM's owner start the main process again when it has ended, within the VM, and the
// VM itself when that has ended without being asked to. The pause before that begins at 100 ms and
// doubles, up to a minute, until something has run for ten seconds. A VM that was stopped, or removed,
// is not started again. Nothing is after the host was down, or when the owner was killed together
// with the VM.
func Restart(policy RestartPolicy) Option { return func(c *config) { c.spec.Restart = policy } }

// RestartPolicy says what is started again: one of the following, or what [OnFailure] returns.
type RestartPolicy = machine.RestartPolicy

// The restart policies.
const (
	RestartNo = machine.RestartNo
	// RestartOnFailure: a main process whose exit code is not 0, and the VM.
	RestartOnFailure = machine.RestartOnFailure
	RestartAlways    = machine.RestartAlways
	// RestartUnlessStopped is the same as RestartAlways.
	RestartUnlessStopped = machine.RestartUnlessStopped
)

// OnFailure is [RestartOnFailure], but at most so many times, 1 or more, until the VM is started by
// somebody.
func OnFailure(limit int) RestartPolicy { return machine.OnFailure(limit) }

// StopSignal is what asks the main process to end when the VM is stopped: a name, such as "SIGQUIT"
// or "SIGRTMIN+3", or a number. The default is what the image says, or else SIGTERM.
func StopSignal(signal string) Option { return func(c *config) { c.spec.StopSignal = signal } }

// ParseSignal reads a signal as [StopSignal] does. It fails with ErrInvalidOption.
func ParseSignal(text string) (syscall.Signal, error) { return machine.ParseSignal(text) }

// Labels give the VM labels, besides those of its image, over which they go. They mean nothing to
// SmolVM. It may be given several times.
func Labels(labels map[string]string) Option {
	return func(c *config) {
		if c.spec.Labels == nil {
			c.spec.Labels = make(map[string]string)
		}
		for key, value := range labels {
			c.spec.Labels[key] = value
		}
	}
}

// Publish exposes ports as [VM.ExposeAll] does, when the VM is started for the first time, before
// its main process is. If that is not possible, the start fails. It may be given several times.
func Publish(specs []PortSpec, opts ...PortOption) Option {
	reqs := requests(specs, opts)
	return func(c *config) { c.spec.Publish = append(c.spec.Publish, reqs...) }
}

// PublishAll publishes all ports that the image names, but for those that [Publish] does: on the same
// port of the host if that is 1024 or more, or if it is busy on the next free one, else on any. Ports that
// cannot be exposed, those of SCTP, are passed over.
func PublishAll() Option { return func(c *config) { c.spec.PublishAll = true } }

// requests are what specs and options ask for.
func requests(specs []PortSpec, opts []PortOption) []forward.Request {
	var reqs []forward.Request
	for _, spec := range specs {
		for _, own := range spec.Requests() {
			req := newRequest(own, opts)
			req.Protocol, req.HostPort, req.HostPortSet = own.Protocol, own.HostPort, own.HostPortSet
			reqs = append(reqs, req)
		}
	}
	return reqs
}

// StopOption changes how [VM.Stop] stops a VM.
type StopOption func(*machine.StopOptions)

// DefaultGrace is how long a main process has to end unless [Grace] says otherwise.
const DefaultGrace = machine.DefaultGrace

// Grace is how long the main process has to end by itself before the guest powers off, which ends it.
// With 0 it is not asked to.
func Grace(limit time.Duration) StopOption {
	return func(o *machine.StopOptions) { o.Grace = &limit }
}
