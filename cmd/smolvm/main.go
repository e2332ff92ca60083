// Smolvm runs small virtual machines and puts what they serve on localhost.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
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
	err := newRootCommand().ExecuteContext(ctx)
	if sig := interrupted(); sig != 0 && err != nil {
		os.Exit(128 + int(sig))
	}
	var status exitStatus
	switch {
	case errors.As(err, &status):
		os.Exit(int(status))
	case err != nil:
		fmt.Fprintln(os.Stderr, "smolvm:", err)
		os.Exit(exitFailure)
	}
}

// Exit codes of the command itself. The range is Docker's, so that it does not
// collide with most commands' own.
const (
	exitFailure    = 125 // smolvm failed
	exitCannotRun  = 126 // the command exists in the guest, but cannot be run
	exitNotFound   = 127 // there is no such command in the guest
	exitDoctorSick = 1
)

// exitStatus is an error that only sets the exit code: all was said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// notify returns a context that ends with the first signal to end, and a function
// that tells which one it was, or 0. A second signal ends the program at once; what
// that leaves, the next command removes.
func notify(parent context.Context) (context.Context, func() syscall.Signal) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		sig := <-signals
		signal.Reset()
		cancel(signalled(sig.(syscall.Signal)))
	}()
	return ctx, func() syscall.Signal {
		var sig signalled
		errors.As(context.Cause(ctx), &sig)
		return syscall.Signal(sig)
	}
}

// signalled is the cause of a context that a signal ended.
type signalled syscall.Signal

func (s signalled) Error() string { return "interrupted: " + syscall.Signal(s).String() }

func newRootCommand() *cobra.Command {
	var g globals
	cmd := &cobra.Command{
		Use:           "smolvm",
		Short:         "Small virtual machines, and what they serve on localhost",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	g.register(cmd)
	cmd.AddCommand(
		newRunCommand(&g),
		newListCommand(&g),
		newRemoveCommand(&g),
		newPullCommand(&g),
		newDoctorCommand(&g),
		newVersionCommand(),
		newOwnCommand(),
	)
	return cmd
}
