// Package vmm says what a virtual machine monitor must do. Package qemu below
// it does it.
package vmm

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"

	"github.com/smolvm/smolvm/internal/store"
)

// ErrAccelerator is wrapped by errors that say that no accelerator, or not the
// requested one, works on this host.
var ErrAccelerator = errors.New("accelerator does not work")

// ErrShape is wrapped by errors that say that a machine cannot go on from what another one was
// saved as, because it is not like it.
var ErrShape = errors.New("machine is another kind than the saved one")

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
	Kernel      string       // ELF vmlinux; not looked at with From
	Initrd      string       // not looked at with From
	Disk        string       // qcow2; empty: none (probes)
	Disks       []store.Disk // more of them, in this order
	MemoryMiB   int
	CPUs        int
	Accelerator Accelerator
	Network     Network
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
	Memory *os.File // Destination.Memory, open for writing too
	State  *os.File // Destination.State; it is read from its beginning
	// Restored, which may be nil, is called when all is in its place, before the guest runs. If
	// it fails, the guest never does.
	Restored func() error
	// Console is what the machine said until then. The console's log begins with it.
	Console []byte
}

// Destination says where a machine is to be saved.
type Destination struct {
	// Memory and State are the paths of files that are made: what the guest has in its memory,
	// and the state of the devices.
	Memory, State string
	// Stopped, which may be nil, is called when the guest stands still and its disk is written
	// out, before the rest of the state is saved: the moment for OverlayDisk.
	Stopped func(context.Context) error
}

// Shape is what two machines must have in common for one to go on from where the other was saved,
// besides what their files hold.
type Shape struct {
	// Machine changes with the monitor, the host's processor if guests see that, and all that is
	// said of the machine but its paths, its TAP and its MAC address.
	Machine string `json:"machine"`
	// TSCKHz is how fast the processor's time stamp counter runs that an emulated guest was told
	// of; 0: none.
	TSCKHz int `json:"tsc_khz,omitempty"`
	// Guest is the version of what the guest's own program speaks, which the monitor knows nothing
	// of.
	Guest int `json:"guest,omitempty"`
}

// tscTolerance is by how much counters may differ: a guest's clock then drifts by 17 s a day at
// most, until it is set again.
const tscTolerance = 2e-4

// Fits tells why a machine of the other shape cannot go on from one of this shape, if that is so.
func (s Shape) Fits(other Shape) error {
	switch {
	case s.Machine != other.Machine:
		return fmt.Errorf("%w: QEMU, the processor, the accelerator or the kind of network has changed", ErrShape)
	case s.Guest != other.Guest:
		return fmt.Errorf("%w: its guest program is of another version of SmolVM", ErrShape)
	case math.Abs(float64(s.TSCKHz-other.TSCKHz)) > tscTolerance*float64(s.TSCKHz):
		return fmt.Errorf("%w: the processor's counter runs at %d kHz here, and at %d kHz there", ErrShape, other.TSCKHz, s.TSCKHz)
	}
	return nil
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
	// NoEgress: NetworkUser leads nowhere.
	NoEgress bool
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
	// Save saves the machine, so that Config.From can go on from there. Under KVM a guest that is
	// not paused runs on until the last of its memory is to be written; an emulated one stands
	// still all the time. After that it is paused: Resume lets it run again. If it fails, nothing is left of the files, and
	// the guest may be paused.
	Save(ctx context.Context, to Destination) error
	// OverlayDisk makes the qcow2 file at path, an empty overlay on the present disk, the disk.
	// The file that was the disk is not written to from then on.
	OverlayDisk(ctx context.Context, path string) error
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
