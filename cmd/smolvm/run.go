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
	ports       []string
	strict      bool
	entrypoint  *string // nil: the image's
	start       startFlags
	transport   string
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

With --detach the VM lives on its own, and smolvm ends once the command is started:
the VM's name is printed, and where its ports are on the standard error. What the
command writes is in smolvm logs. Such a VM goes on when the command has ended, and
is kept when it is stopped. With --rm it ends with the command, if there is one, and is
removed when it has ended in whatever way.

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
			command := args
			if dash := cmd.ArgsLenAtDash(); dash != 0 && len(args) > 0 {
				if err := f.takeImage(cmd, args[0]); err != nil {
					return err
				}
				command = args[1:]
			}
			if flag := cmd.Flags().Lookup("entrypoint"); flag.Changed {
				value := flag.Value.String()
				f.entrypoint = &value
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
	settingVar(cmd, flags, &f.transport, "transport")
	flags.StringArrayVarP(&f.ports, "publish", "p", nil, "put a port of the guest on localhost: `[HOST:]GUEST[/udp]`, also ranges such as 8000-8010:9000-9010 (may be repeated)")
	flags.String("entrypoint", "", "run this `program` in place of the image's entry point; an empty one runs what is behind -- as it is")
	flags.BoolVar(&f.strict, "strict", false, "fail if a host port is busy, rather than take the next free one")
	flags.BoolVar(&f.timed, "timings", false, "show at the end what the time was spent on")
	flags.BoolVar(&f.remove, "rm", false, "remove the VM at the end; --rm=false keeps it, stopped (default: true, with --detach false)")
	flags.BoolVarP(&f.detach, "detach", "d", false, "let the VM live on its own, in the background")
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "pass standard input to the command")
	flags.BoolVarP(&f.terminal, "tty", "t", false, "give the command a terminal, this one")
	return cmd
}

// checkArgs finds what cannot go together.
func (f *runFlags) checkArgs(cmd *cobra.Command, args []string) error {
	before := len(args)
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		before = dash
	}
	switch command := len(args) > before; {
	case before > 1:
		return fmt.Errorf("run takes one image; put the command behind --, as in: smolvm run %s -- %s", args[0], args[1])
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

// command is what is to run in the VM: the image's own command, of which what is given takes the
// place, but for its entry point. It is empty if there is none.
func (f *runFlags) command(ctx context.Context, vm *smolvm.VM, given []string) ([]string, error) {
	info, err := vm.Info(ctx)
	if err != nil {
		return nil, err
	}
	entrypoint, rest := info.Entrypoint, info.Cmd
	if f.entrypoint != nil {
		entrypoint, rest = slices.DeleteFunc([]string{*f.entrypoint}, func(s string) bool { return s == "" }), nil
	}
	if len(given) > 0 {
		rest = given
	}
	command := slices.Concat(entrypoint, rest)
	if len(command) == 0 && (f.terminal || f.interactive) {
		return nil, errNoCommand
	}
	return command, nil
}

// options are the library's options that the flags stand for.
func (f *runFlags) options() ([]smolvm.Option, error) {
	opts, err := f.vmFlags.options()
	opts = append(opts, f.start.options()...)
	if !f.remove {
		opts = append(opts, smolvm.Keep())
	}
	return opts, err
}

// launch starts the VM, to be run by whom the options say, and returns the ports to publish.
func (f *runFlags) launch(ctx context.Context, g *globals, options func() ([]smolvm.Option, func())) (*smolvm.VM, []smolvm.PortSpec, error) {
	if f.terminal && !isTerminal(os.Stdin) {
		return nil, nil, errNoTerminal
	}
	specs, err := parsePorts(f.ports)
	if err != nil {
		return nil, nil, err
	}
	what, err := f.options()
	if err != nil {
		return nil, nil, err
	}
	opts, done := options()
	defer done()
	g.progress().say("starting a VM")
	vm, err := smolvm.Launch(ctx, append(opts, what...)...)
	return vm, specs, interrupted(ctx, err, "no VM was made")
}

// runHere runs a VM that this program owns: it ends with it, whatever happens.
func (f *runFlags) runHere(ctx context.Context, g *globals, command []string) (err error) {
	vm, specs, err := f.launch(ctx, g, g.foreground)
	if err != nil {
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
	if err := f.publish(ctx, vm, specs); err != nil {
		return err
	}
	if command, err = f.command(ctx, vm, command); err != nil {
		return err
	}
	if len(command) == 0 {
		fmt.Fprintf(os.Stderr, "%s is running; Ctrl-C stops it\n", vm.Name())
		return untilEnd(ctx, vm)
	}
	cmd := vm.Command(ctx, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if f.interactive {
		cmd.Stdin = os.Stdin
	}
	if f.terminal {
		return commandStatus(runInTerminal(ctx, cmd))
	}
	return commandStatus(cmd.Run())
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
func (f *runFlags) runDetached(cmd *cobra.Command, g *globals, command []string) (err error) {
	ctx := cmd.Context()
	vm, specs, err := f.launch(ctx, g, g.options)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			if undoErr := vm.Delete(ctx); undoErr != nil {
				err = also(err, fmt.Errorf("remove VM %s: %w", vm.Name(), undoErr))
			}
		}
		err = also(err, vm.Close())
	}()
	if err := f.publish(ctx, vm, specs); err != nil {
		return interrupted(ctx, err, "VM %s was removed", vm.Name())
	}
	if command, err = f.command(ctx, vm, command); err != nil {
		return interrupted(ctx, err, "VM %s was removed", vm.Name())
	}
	if len(command) > 0 {
		command := vm.Command(ctx, command[0], command[1:]...)
		command.PowerOff = f.remove
		if err := commandStatus(command.StartDetached()); err != nil {
			return interrupted(ctx, err, "VM %s was removed", vm.Name())
		}
	}
	f.timings.end("command")
	_, err = fmt.Fprintln(cmd.OutOrStdout(), vm.Name())
	return err
}

// publish exposes ports and says where.
func (f *runFlags) publish(ctx context.Context, vm *smolvm.VM, specs []smolvm.PortSpec) error {
	if err := f.timings.launched(ctx, vm); err != nil {
		return err
	}
	forwards, err := vm.ExposeAll(ctx, specs, portOptions(f.strict, f.transport)...)
	if err != nil {
		return err
	}
	for _, fw := range forwards {
		fmt.Fprintln(os.Stderr, describeForward(fw))
	}
	f.timings.end("publish")
	return nil
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
