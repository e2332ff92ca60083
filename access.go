package smolvm

import (
	"context"
	"io"
	"net"

	"github.com/smolvm/smolvm/internal/machine"
)

// Dial connects to a TCP address as the guest sees it, such as "localhost:22", over the
// guest channel: the host needs no port for it. It fails with ErrNotRunning. The
// caller owes the connection a Close; it has CloseWrite.
func (v *VM) Dial(ctx context.Context, address string) (net.Conn, error) {
	return v.vm.Dial(ctx, address)
}

// SSHAccess is what an SSH client needs to log in to a guest, over [VM.Dial] to port 22.
type SSHAccess = machine.SSHAccess

// SSH returns how SSH clients log in to the guest. Its files exist from then on, whether the
// VM runs or not.
func (v *VM) SSH(ctx context.Context) (SSHAccess, error) { return v.vm.SSH(ctx) }

// LogOptions say which log is wanted and how much of it.
type LogOptions = machine.LogOptions

// LogSource names one of a VM's logs.
type LogSource = machine.LogSource

// The logs.
const (
	// ConsoleLog is what the guest's kernel says and what commands write that
	// [Cmd.StartDetached] started.
	ConsoleLog = machine.LogConsole
	// OwnerLog is what the VM's background owner says.
	OwnerLog = machine.LogOwner
)

// Logs returns a log of the VM, whether it runs or not. With Follow the reader does not end
// before ctx does or the VM is deleted. The caller owes a Close.
func (v *VM) Logs(ctx context.Context, opts LogOptions) (io.ReadCloser, error) {
	return v.vm.Logs(ctx, opts)
}
