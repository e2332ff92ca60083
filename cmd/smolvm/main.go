// Smolvm runs small virtual machines and puts what they serve on localhost.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// version is set by the linker.
var version = "dev"

// collectorPercent is how much garbage there may be for what is in use. What goes through
// an SSH tunnel makes a lot of it beside very little: collecting that at the usual pace
// takes a fourth of the tunnel's throughput.
const collectorPercent = 400

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectorPercent)
	}
	ctx, interrupted := notify(context.Background())
	g := &globals{}
	cmd, err := newRootCommand(g).ExecuteContextC(ctx)
	g.progress().clear()
	os.Exit(g.report(os.Stderr, cmd, err, interrupted()))
}

// Exit codes of the command itself. Those of verbs that pass on the exit code of a command
// in the guest are Docker's, so that they do not collide with most commands' own.
const (
	exitFailed    = 1   // what was asked for could not be done, or doctor found the host sick
	exitUsage     = 2   // it was not asked for rightly
	exitFailure   = 125 // run, exec and shell: smolvm failed, or was not asked rightly
	exitCannotRun = 126 // run, exec and shell: the command exists in the guest, but cannot be run
	exitNotFound  = 127 // run, exec and shell: there is no such command in the guest
)

// exitStatus is an error that only sets the exit code: all was said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// report says what went wrong, if anything did, and returns the exit code. The signal is the
// one that ended the work, or 0.
func (g *globals) report(out *os.File, cmd *cobra.Command, err error, sig syscall.Signal) int {
	if err == nil {
		return 0
	}
	// Every VM, or whatever else was done at once, has a line of its own.
	each := []error{err}
	if several, ok := errors.AsType[failures](err); ok {
		each = several
	}
	for _, err := range each {
		if _, silent := errors.AsType[exitStatus](err); !silent {
			fmt.Fprintln(out, "smolvm: "+g.complaint(cmd, err))
		}
	}
	status, said := errors.AsType[exitStatus](err)
	_, misused := errors.AsType[*usageError](err)
	if len(each) == 1 {
		misused = misused || errors.Is(err, smolvm.ErrInvalidOption) || errors.Is(err, smolvm.ErrInvalidName)
	}
	switch {
	case said:
		return int(status)
	case sig != 0:
		return 128 + int(sig)
	case slices.Contains([]string{"run", "exec", "shell"}, cmd.Name()):
		return exitFailure
	case misused:
		return exitUsage
	}
	return exitFailed
}

// notify returns a context that ends with the first signal to end, and a function
// that tells which one it was, or 0. A second signal ends the program at once; what
// that leaves, the next command removes.
func notify(parent context.Context) (context.Context, func() syscall.Signal) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		sig := <-signals
		signal.Stop(signals)
		cancel(signalled(sig.(syscall.Signal)))
	}()
	return ctx, func() syscall.Signal {
		sig, _ := errors.AsType[signalled](context.Cause(ctx))
		return syscall.Signal(sig)
	}
}

// signalled is the cause of a context that a signal ended.
type signalled syscall.Signal

func (s signalled) Error() string { return "interrupted: " + syscall.Signal(s).String() }
