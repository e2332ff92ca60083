package smolvm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"

	"github.com/smolvm/smolvm/internal/control"
	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/machine"
)

// Result is what a command left.
type Result struct {
	Stdout   string
	Stderr   string
	ExitCode int // 128 plus the signal's number if a signal ended the command
}

// Run runs a command line in the guest's shell, as root in /root, and waits for
// it. That the command fails is a Result, not an error; an error means that it
// did not run to its end.
//
// Run returns when the command itself has ended. What it left in the background
// lives on, so a server is started by "python3 -m http.server 8000 &".
//
// All output is kept in memory: use [VM.Command] for a lot of it. When ctx ends the
// command is killed. Run fails with ErrNotRunning if the VM does not run.
func (v *VM) Run(ctx context.Context, command string) (*Result, error) {
	var stdout, stderr bytes.Buffer
	cmd := v.Command(ctx, "/bin/sh", "-c", command)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, err
	}
	res := &Result{Stdout: stdout.String(), Stderr: stderr.String()}
	if exit != nil {
		res.ExitCode = exit.ExitCode()
	}
	return res, nil
}

// Cmd is a command in the guest, in the manner of [os/exec.Cmd]. Its fields are set
// before Start and not changed afterwards. A Cmd cannot be used twice. Of its
// methods only Signal may be called concurrently with others.
type Cmd struct {
	Args []string // the program and its arguments, with no shell between
	Dir  string   // working directory; default: the image's, or else the user's home
	Env  []string // added to the VM's environment, as "NAME=value"
	User string   // name or number in the guest, ":GROUP" may follow; default: the image's, or else root
	// Terminal, if set, gives the command a terminal of its own. All its output goes to
	// Stdout then, and how it treats its input is the terminal's business.
	Terminal *Terminal
	// PowerOff lets the guest power off when a command of StartDetached has ended.
	PowerOff bool
	// Stdin is read until its end or the command's. Default: no input.
	Stdin io.Reader
	// Stdout and Stderr take the output. Default: it is discarded. If both are the
	// same writer, it is called by one goroutine at a time.
	Stdout io.Writer
	Stderr io.Writer

	ctx     context.Context
	vm      *control.VM
	process machine.Process
}

// Terminal is a terminal for a command in the guest.
type Terminal = guestapi.Terminal

// Command returns a command that is not started yet. The program is looked up in
// the guest's PATH if it has no slash. When ctx ends the command is killed.
func (v *VM) Command(ctx context.Context, program string, args ...string) *Cmd {
	return &Cmd{Args: append([]string{program}, args...), ctx: ctx, vm: v.vm}
}

// Shell returns a command that is root's login shell. It wants a Terminal to be of use to
// people.
func (v *VM) Shell(ctx context.Context) *Cmd { return &Cmd{ctx: ctx, vm: v.vm} }

// Start starts the command. A Start that succeeds is owed a Wait. It fails with
// ErrNotRunning, or as a [*StartError] if the guest cannot start the program.
func (c *Cmd) Start() error {
	if c.process != nil {
		return errors.New("smolvm: command was already started")
	}
	p, err := c.vm.StartCommand(c.ctx, machine.Command{
		Exec:  guestapi.Exec{Argv: c.Args, Dir: c.Dir, Env: c.Env, User: c.User, Terminal: c.Terminal},
		Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr,
	})
	c.process = p
	return err
}

// StartDetached starts the command and lets go of it: it lives on however this program and
// the VM's owner end, until the VM does. It has no input, and what it writes goes to the
// VM's [ConsoleLog]. There is nothing to wait for.
func (c *Cmd) StartDetached() error {
	if c.process != nil {
		return errors.New("smolvm: command was already started")
	}
	_, err := c.vm.StartCommand(c.ctx, machine.Command{Exec: guestapi.Exec{
		Argv: c.Args, Dir: c.Dir, Env: c.Env, User: c.User, Detach: true, PowerOff: c.PowerOff,
	}})
	return err
}

// Wait waits for the end of the command and of its output. A command that was not
// successful gives an [*ExitError]; one that was killed because its context ended
// gives the context's error.
func (c *Cmd) Wait() error {
	if c.process == nil {
		return errors.New("smolvm: command was not started")
	}
	return c.process.Wait()
}

// Run is Start and Wait.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns what it wrote to its standard output.
func (c *Cmd) Output() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	err := c.Run()
	return out.Bytes(), err
}

// CombinedOutput runs the command and returns what it wrote to its standard output
// and error.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// Signal sends a signal, such as [os.Interrupt], to the command.
func (c *Cmd) Signal(sig os.Signal) error {
	if c.process == nil {
		return errors.New("smolvm: command was not started")
	}
	return c.process.Signal(sig)
}

// Resize tells the command's terminal its size.
func (c *Cmd) Resize(columns, rows int) error {
	if c.process == nil {
		return errors.New("smolvm: command was not started")
	}
	return c.process.Resize(columns, rows)
}
