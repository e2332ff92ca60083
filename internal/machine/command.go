package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestlink"
)

// Command is a command to start in a guest.
type Command struct {
	Exec           guestapi.Exec // whose Stdin says the same as this one's, and is not looked at
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Process is a command that was started in a guest. Its methods may be called concurrently.
type Process interface {
	// Wait waits for the command's end. Its error is an *ExitError if the command was not
	// successful.
	Wait() error
	// Signal sends a signal to the command.
	Signal(sig os.Signal) error
	// Resize tells the command's terminal its size.
	Resize(columns, rows int) error
}

// process is a command that this process started.
type process struct {
	vm      *VM
	ctx     context.Context
	process *guestlink.Process
}

// StartError says why a command did not start in the guest.
type StartError struct {
	Program  string
	NotFound bool // there is no such program, or no such directory to run it in
	Err      error
}

func (e *StartError) Error() string { return fmt.Sprintf("start %s: %v", e.Program, e.Err) }

// Unwrap returns what the guest said.
func (e *StartError) Unwrap() error { return e.Err }

// ExitError says how a command that was not successful ended.
type ExitError struct {
	status guestapi.ExitStatus
}

// NewExitError returns the error of a command that ended so.
func NewExitError(status guestapi.ExitStatus) *ExitError { return &ExitError{status} }

// Status is how the command ended.
func (e *ExitError) Status() guestapi.ExitStatus { return e.status }

func (e *ExitError) Error() string {
	if e.status.Signal != "" {
		return "command ended by signal " + e.status.Signal
	}
	return fmt.Sprintf("command ended with exit code %d", e.status.Code)
}

// ExitCode is the command's exit code, or 128 plus the number of the signal that
// ended it.
func (e *ExitError) ExitCode() int { return e.status.Code }

// Signal is the name of the signal that ended the command, without "SIG", or empty.
func (e *ExitError) Signal() string { return e.status.Signal }

// StartCommand starts a command in the guest: where nothing else is said, in the directory and as
// the user that the image names. When ctx ends, the command is killed.
func (v *VM) StartCommand(ctx context.Context, c Command) (Process, error) {
	const op = "run command"
	r, err := v.answering(ctx, op)
	if err != nil {
		return nil, err
	}
	c.Exec.Dir = cmp.Or(c.Exec.Dir, r.identity.config.WorkingDir)
	c.Exec.User = cmp.Or(c.Exec.User, r.identity.config.User)
	started, err := r.channel.Start(ctx, c.Exec, c.Stdin, c.Stdout, c.Stderr)
	var start *guestlink.StartError
	switch {
	case errors.As(err, &start):
		return nil, &StartError{Program: start.Program, NotFound: errors.Is(err, fs.ErrNotExist), Err: start}
	case ctx.Err() != nil && err != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, v.unlessStopped(ctx, op, err)
	}
	return &process{vm: v, ctx: ctx, process: started}, nil
}

// Wait implements Process.
func (p *process) Wait() error {
	status, err := p.process.Wait()
	switch {
	case err != nil && p.ctx.Err() != nil:
		return p.ctx.Err()
	case err != nil:
		return p.vm.unlessStopped(context.WithoutCancel(p.ctx), "run command", err)
	case status != guestapi.ExitStatus{}:
		return &ExitError{status}
	}
	return nil
}

// Signal implements Process.
func (p *process) Signal(sig os.Signal) error {
	number, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal command: %v is no signal of Linux", sig)
	}
	return p.process.Signal(number)
}

// Resize implements Process.
func (p *process) Resize(columns, rows int) error { return p.process.Resize(columns, rows) }
