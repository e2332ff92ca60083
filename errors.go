package smolvm

import (
	"github.com/smolvm/smolvm/internal/control"
	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/machine"
	"github.com/smolvm/smolvm/internal/share"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/vmm"
)

// Errors to be checked with [errors.Is].
var (
	// ErrInvalidPort: a port is not within 1 to 65535. [errors.As] a [*PortError]
	// tells which.
	ErrInvalidPort = forward.ErrInvalidPort
	// ErrInvalidPortSpec: what was written is no [PortSpec].
	ErrInvalidPortSpec = forward.ErrInvalidSpec
	// ErrPortInUse: the host port is taken, and [Strict] forbade another.
	// [errors.As] a [*PortInUseError] tells by whom, where that can be known.
	ErrPortInUse = forward.ErrPortInUse
	// ErrTransport: the forced [Transport] cannot be used; the message says why.
	ErrTransport = forward.ErrTransport
	// ErrNotRunning: the VM must run for that. [errors.As] a [*NotRunningError]
	// tells what could not be done.
	ErrNotRunning = machine.ErrNotRunning
	// ErrRunning: the VM must not run for that.
	ErrRunning = machine.ErrRunning
	// ErrNotWritten: part of what the guest wrote is in its memory only, because it is paused or
	// suspended.
	ErrNotWritten = machine.ErrNotWritten
	// ErrDeleted: the VM was deleted.
	ErrDeleted = machine.ErrDeleted
	// ErrNotFound: there is no VM of that name.
	ErrNotFound = store.ErrNotFound
	// ErrDamaged: the VM's record cannot be read. The message names its file; all that can be
	// done with such a VM is to delete it.
	ErrDamaged = store.ErrDamaged
	// ErrExists: there is a VM of that name.
	ErrExists = store.ErrExists
	// ErrInUse: another living process owns the VM, and it cannot be asked to do that.
	ErrInUse = store.ErrInUse
	// ErrOwnerVersion: the VM's owner is of a version of SmolVM that this one does not
	// understand; the message says what to do.
	ErrOwnerVersion = control.ErrVersion
	// ErrSnapshotNotFound: there is no snapshot of that name.
	ErrSnapshotNotFound = store.ErrSnapshotNotFound
	// ErrSnapshotExists: there is a snapshot of that name.
	ErrSnapshotExists = store.ErrSnapshotExists
	// ErrCannotResume: the VM cannot go on from where it was suspended or copied; the message says
	// why. [DiscardMemory] lets it boot.
	ErrCannotResume = machine.ErrCannotResume
	// ErrInvalidName: a VM's name is no DNS label.
	ErrInvalidName = store.ErrInvalidName
	// ErrInvalidOption: an option is out of its range.
	ErrInvalidOption = machine.ErrInvalidOption
	// ErrFolder: a folder of the host cannot be shared; the message says why.
	ErrFolder = share.ErrFolder
	// ErrImageNotFound: there is no image of that name, and no way to make it.
	ErrImageNotFound = image.ErrNotFound
	// ErrImageInUse: VMs are made on the image.
	ErrImageInUse = machine.ErrImageInUse
	// ErrImageShared: the image is in another data directory, root's.
	ErrImageShared = machine.ErrImageShared
	// ErrAccelerator: the accelerator asked for does not work on this host.
	ErrAccelerator = vmm.ErrAccelerator
	// ErrTimeout: a wait took longer than its context, or SmolVM itself, allows.
	ErrTimeout = machine.ErrTimeout
)

// PortError tells which port is not within 1 to 65535: its message is
// "guest_port must be 1-65535" or "host_port must be 1-65535".
type PortError = forward.PortError

// PortInUseError tells which host port is taken and by whom.
type PortInUseError = forward.PortInUseError

// NotRunningError tells what could not be done: its message is, for example,
// "cannot expose port: VM is stopped".
type NotRunningError = machine.NotRunningError

// StartError tells why a command did not start in the guest: there is no such
// program, or no such directory.
type StartError = machine.StartError

// ExitError tells how a command that was not successful ended.
type ExitError = machine.ExitError
