// Package vmm says what a virtual machine monitor must do. Package qemu below
// it does it.
package vmm

import (
	"context"
	"errors"
	"net"
	"os"
)

// ErrAccelerator is wrapped by errors that say that no accelerator, or not the
// requested one, works on this host.
var ErrAccelerator = errors.New("accelerator does not work")

// ErrGone is wrapped by errors that say that the machine to take over has ended.
var ErrGone = errors.New("machine has ended")

// Accelerator names how guest code is executed.
type Accelerator string

// The accelerators.
const (
	KVM Accelerator = "kvm" // on the processor, isolated by its virtualization
	TCG Accelerator = "tcg" // emulated: slower, and no security boundary
)

// NetworkMode says what the guest's network interface is connected to.
type NetworkMode string

// The network modes.
const (
	NetworkNone NetworkMode = "none" // no interface
	NetworkTAP  NetworkMode = "tap"  // a TAP device that the caller opened
	NetworkUser NetworkMode = "user" // the monitor's user-mode stack: needs no privilege
)

// ConsoleLog is the file in Config.Dir that keeps what the guest's kernel and
// its first program say. It is bounded: an older part is in ConsoleLog + ".1".
const ConsoleLog = "console.log"

// Config is what a machine is made of. All paths must exist when it starts.
type Config struct {
	// Dir is the VM's own directory. The monitor keeps its sockets and logs there.
	Dir         string
	Kernel      string // ELF vmlinux; not looked at with From
	Initrd      string // not looked at with From
	Disk        string // qcow2; empty: none (probes)
	MemoryMiB   int
	CPUs        int
	Accelerator Accelerator
	Network     Network
	// Memory is the path of a new file that becomes the guest's memory, so that Save can leave
	// it there. Empty: the machine cannot be saved.
	Memory string
	// From is what a machine made of the same Config, but for the paths, Network.TAP and
	// Network.MAC, was saved as. This one goes on from there instead of booting.
	From *Saved
	// Lock is an open file, locked by flock(2), that the monitor inherits and never closes:
	// it stays locked for as long as the monitor lives, whatever becomes of who started
	// it. It may be nil. The caller closes its own.
	Lock *os.File
	// Detached lets the machine outlive the process that starts it, which another
	// process can then take over. Otherwise it dies with that process.
	Detached bool
}

// Saved is what Machine.Save leaves. Any number of machines can be started from it at once,
// none of which changes it.
type Saved struct {
	Memory *os.File // Config.Memory of the machine that was saved, open for writing too
	State  *os.File // the file that Save wrote; it is read from its beginning
	// Console is what the machine said until then. The console's log begins with it.
	Console []byte
}

// Adoption says which machine to take over from a process that died.
type Adoption struct {
	Dir  string // Config.Dir
	Lock string // path of Config.Lock, which the monitor has open
}

// Network is a machine's network interface.
type Network struct {
	Mode NetworkMode
	// TAP is the open TAP device for NetworkTAP. The machine duplicates it; the
	// caller closes its own.
	TAP *os.File
	MAC net.HardwareAddr
}

// Machine is a running virtual machine. Its methods may be called concurrently.
type Machine interface {
	// Channel connects to the host end of the guest channel, a byte stream that
	// outlives connections. One connection at a time is served.
	Channel(ctx context.Context) (net.Conn, error)
	// PID is the process ID of the monitor.
	PID() int
	// Paused tells whether the guest's processors are stopped.
	Paused() bool
	// Pause stops the guest's processors, Resume lets them run again.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Save writes the state of the machine's devices to a new file at path, so that
	// Config.From with that and Config.Memory, which it must have been started with, goes
	// on from there. The disk is complete then. The guest does not run on: all that is
	// left to do with the machine is to end it.
	Save(ctx context.Context, path string) error
	// Stop ends the machine in order: powerOff (which asks the guest, may be nil),
	// then the monitor's own quit, then a kill, each with a deadline.
	// It returns when the process is gone, at the latest a bounded time after ctx ended.
	Stop(ctx context.Context, powerOff func(context.Context) error) error
	// Kill ends the machine at once and returns when the process is gone.
	Kill() error
	// Done is closed when the process is gone and everything it held is released.
	Done() <-chan struct{}
	// Err says why the process ended, once Done is closed: nil if the guest powered
	// off, or Stop or Kill asked for it, else an error with the last lines of its logs.
	Err() error
}
