package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// runFlags are the flags of smolvm run.
type runFlags struct {
	vmFlags
	main        mainFlags
	start       startFlags
	remove      bool // see removes
	detach      bool
	interactive bool
	terminal    bool
	timed       bool
	timings     *timings // nil: not wanted
}

func newRunCommand(g *globals) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] [IMAGE] [-- COMMAND [ARG...]]",
		Short: "Start a VM, run a command in it, and remove it",
		Long: `Start a VM, run a command in it, and remove it when the command ends.

The command's output is passed on, and so is its exit code. Without a command
the image's own is run, if it was made of a container image that has one; else
the VM runs until Ctrl-C. Ctrl-C ends the command, stops the VM and removes it.

Ctrl-C asks the command to end, by the stop signal, and kills it if it has not after
10 seconds.

With --detach the VM lives on its own, and smolvm ends once the command is started:
the VM's name is printed, and where its ports are on the standard error. The command
is the VM's main process: what it writes is in smolvm logs, the VM ends when it does,
unless --restart says otherwise, and it is run again whenever the VM is started. A VM
without a command runs until it is stopped. With --rm it is removed when it has ended
in whatever way, else it is kept.

Exit codes: the command's own; 125 if smolvm failed, 126 if the command cannot be
run, 127 if there is no such command; 128 plus the signal's number if a signal
ended smolvm or the command.`,
		Example: `  smolvm run -- uname -a
  smolvm run python:3.13-alpine -p 8000 -- python3 -m http.server 8000
  smolvm run -it -- bash
  smolvm run -p 8000 -- python3 -m http.server 8000
  smolvm run -p 8080:80 -p 5432 -p 5353:53/udp --memory 1024
  smolvm run -v .:/work -- ls -l /work
  smolvm run -d --name web -p 8000 -- python3 -m http.server 8000
  echo 'print(6 * 7)' | smolvm run -i -- python3 -`,
		Args:              f.checkArgs,
		ValidArgsFunction: g.completeImages(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			command, err := f.main.take(cmd, &f.vmFlags, args)
			if err != nil {
				return err
			}
			if !cmd.Flags().Changed("rm") {
				f.remove = !f.detach
			}
			if f.timed {
				f.timings = newTimings()
				defer func() { f.timings.print(cmd.ErrOrStderr()) }()
			}
			if f.detach {
				return f.runDetached(cmd, g, command)
			}
			return f.runHere(cmd.Context(), g, command)
		},
	}
	f.register(g, cmd)
	flags := cmd.Flags()
	f.start.register(cmd)
	f.main.register(cmd)
	flags.BoolVar(&f.timed, "timings", false, "show at the end what the time was spent on")
	flags.BoolVar(&f.remove, "rm", false, "remove the VM at the end; --rm=false keeps it, stopped (default: true, with --detach false)")
	flags.BoolVarP(&f.detach, "detach", "d", false, "let the VM live on its own, in the background")
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "pass standard input to the command")
	flags.BoolVarP(&f.terminal, "tty", "t", false, "give the command a terminal, this one")
	return cmd
}

// checkArgs finds what cannot go together.
func (f *runFlags) checkArgs(cmd *cobra.Command, args []string) error {
	before, err := checkImage(cmd, args)
	switch command := len(args) > before; {
	case err != nil:
		return err
	case !f.detach && cmd.Flags().Changed("restart"):
		return errors.New("--restart is for VMs that live on their own: add --detach")
	case f.remove && cmd.Flags().Changed("restart"):
		return errors.New("--restart and --rm cannot go together")
	case f.detach && f.terminal:
		return errors.New("--detach and --tty cannot go together")
	case f.detach && f.interactive:
		return errors.New("--detach and --interactive cannot go together")
	case (f.terminal || f.interactive) && !command && before == 0:
		return errNoCommand
	}
	return nil
}

// errNoCommand is about a terminal, or input, for nothing.
var errNoCommand = errors.New("--tty and --interactive need a command, as in: smolvm run -it -- bash")

// options are the library's options that the flags stand for.
func (f *runFlags) options() ([]smolvm.Option, error) {
	opts, err := f.vmFlags.options()
	if err != nil {
		return nil, err
	}
	main, err := f.main.options()
	opts = append(append(opts, main...), f.start.options()...)
	if !f.remove {
		opts = append(opts, smolvm.Keep())
	}
	return opts, err
}

// launch starts the VM, to be run by whom the options say, with more of them, and says where its
// ports are.
func (f *runFlags) launch(ctx context.Context, g *globals, options func() ([]smolvm.Option, func()), more ...smolvm.Option) (*smolvm.VM, error) {
	if f.terminal && !isTerminal(os.Stdin) {
		return nil, errNoTerminal
	}
	what, err := f.options()
	if err != nil {
		return nil, err
	}
	opts, done := options()
	defer done()
	g.progress().say("starting a VM")
	vm, err := smolvm.Launch(ctx, slices.Concat(opts, what, more)...)
	if err != nil {
		return nil, interrupted(ctx, err, "no VM was made")
	}
	done()
	for _, fw := range vm.Forwards() {
		fmt.Fprintln(os.Stderr, describeForward(fw))
	}
	return vm, f.timings.launched(ctx, vm)
}

// runHere runs a VM that this program owns: it ends with it, whatever happens.
func (f *runFlags) runHere(ctx context.Context, g *globals, given []string) (err error) {
	vm, err := f.launch(ctx, g, g.foreground)
	if vm == nil {
		return err
	}
	defer func() {
		end := "stopped and removed"
		if !f.remove {
			end = "stopped"
		}
		err = interrupted(ctx, err, "VM %s was %s", vm.Name(), end)
		f.timings.end("command")
		if closeErr := vm.Close(); closeErr != nil {
			err = also(err, fmt.Errorf("end VM %s: %w", vm.Name(), closeErr))
		}
		f.timings.end("end")
	}()
	if err != nil {
		return err
	}
	info, err := vm.Info(ctx)
	if err != nil {
		return err
	}
	command := f.main.command(info, given)
	switch {
	case len(command) == 0 && (f.terminal || f.interactive):
		return errNoCommand
	case len(command) == 0:
		fmt.Fprintf(os.Stderr, "%s is running; Ctrl-C stops it\n", vm.Name())
		return untilEnd(ctx, vm)
	case f.terminal:
		return commandStatus(runInTerminal(ctx, f.newCommand(ctx, vm, command)))
	}
	stop, err := smolvm.ParseSignal(info.StopSignal)
	if err != nil {
		return err
	}
	err = relay(ctx, relaying{as: stop, grace: smolvm.DefaultGrace}, func(ctx context.Context) (relayed, error) {
		return f.newCommand(ctx, vm, command), nil
	})
	if ctx.Err() != nil {
		return ctx.Err() // however the command took it
	}
	return commandStatus(err)
}

// newCommand is the command that runs in the foreground.
func (f *runFlags) newCommand(ctx context.Context, vm *smolvm.VM, command []string) *smolvm.Cmd {
	cmd := vm.Command(ctx, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if f.interactive {
		cmd.Stdin = os.Stdin
	}
	return cmd
}

// untilEnd waits until the VM has ended, or ctx has.
func untilEnd(ctx context.Context, vm *smolvm.VM) error {
	if err := vm.Wait(ctx); err != nil {
		return err
	}
	return ctx.Err()
}

// undoTimeout bounds the removal of a VM of which not all could be done.
const undoTimeout = 30 * time.Second

// runDetached starts a VM that lives on its own. If not all that was asked for can be done,
// nothing is left.
func (f *runFlags) runDetached(cmd *cobra.Command, g *globals, given []string) error {
	ctx := cmd.Context()
	vm, err := f.launch(ctx, g, g.options, f.main.mainProcess(given)...)
	if vm == nil {
		return commandStatus(err)
	}
	if err == nil {
		_, err = fmt.Fprintln(cmd.OutOrStdout(), vm.Name())
	}
	if err != nil {
		err = interrupted(ctx, err, "VM %s was removed", vm.Name())
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if undoErr := vm.Delete(ctx); undoErr != nil {
			err = also(err, fmt.Errorf("remove VM %s: %w", vm.Name(), undoErr))
		}
	}
	return also(err, vm.Close())
}

// commandStatus turns how the guest's command ended into smolvm's own exit code.
func commandStatus(err error) error {
	var exit *smolvm.ExitError
	var start *smolvm.StartError
	switch {
	case errors.As(err, &exit):
		return exitStatus(exit.ExitCode())
	case errors.As(err, &start):
		fmt.Fprintln(os.Stderr, "smolvm:", plain(err.Error()))
		if start.NotFound {
			return exitStatus(exitNotFound)
		}
		return exitStatus(exitCannotRun)
	}
	return err
}
