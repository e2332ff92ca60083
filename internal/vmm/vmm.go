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
	Kernel      string // ELF vmlinux
	Initrd      string
	Disk        string // qcow2; empty: none (probes)
	MemoryMiB   int
	CPUs        int
	Accelerator Accelerator
	Network     Network
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
// It dies with the process that started it.
type Machine interface {
	// Channel connects to the host end of the guest channel, a byte stream that
	// outlives connections. One connection at a time is served.
	Channel(ctx context.Context) (net.Conn, error)
	// PID is the process ID of the monitor.
	PID() int
	// Pause stops the guest's processors, Resume lets them run again.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
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
