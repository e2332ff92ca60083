package main

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// guestFlags say how a command runs in the guest.
type guestFlags struct {
	env  []string
	dir  string
	user string
}

func (f *guestFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.env, "env", "e", nil, "set a variable for the command: `NAME=VALUE`, or NAME to pass this one's on (may be repeated)")
	flags.StringVarP(&f.dir, "workdir", "w", "", "run in this directory of the guest (default: the image's, or else the user's home)")
	flags.StringVarP(&f.user, "user", "u", "", "run as this user of the guest: name or number, `USER[:GROUP]` (default: the image's, or else root)")
}

// apply gives a command what the flags say.
func (f *guestFlags) apply(cmd *smolvm.Cmd) (*smolvm.Cmd, error) {
	env, err := environment(f.env)
	cmd.Env, cmd.Dir, cmd.User = env, f.dir, f.user
	return cmd, err
}

type execFlags struct {
	guestFlags
	interactive, terminal, detach bool
}

func newExecCommand(g *globals) *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "exec [flags] VM [--] COMMAND [ARG...]",
		Short: "Run a command in a VM that runs",
		Long: `Run a command in a VM that runs.

The command's output is passed on, and so is its exit code. Flags for exec stand
before the VM's name; all that comes after it belongs to the command. There is no
shell in between: for pipes and variables of the guest, run one (sh -c '...').

Without -t, the first Ctrl-C or SIGTERM is passed on to the command, and smolvm ends
as the command does; a second one ends smolvm, which kills the command. With -t all
that is typed goes to the guest.

Exit codes: the command's own; 125 if smolvm failed, 126 if the command cannot be
run, 127 if there is no such command or directory; 128 plus the signal's number if a signal
ended smolvm or the command.`,
		Example: `  smolvm exec web -- uname -a
  smolvm exec -it web python3
  smolvm exec -e DEBUG=1 -w /srv -u nobody web -- ./server
  tar -c . | smolvm exec -i -w /srv web -- tar -x
  smolvm exec -d web -- python3 -m http.server 8000   # smolvm logs web has its output`,
		Args: func(_ *cobra.Command, args []string) error {
			if f.detach && (f.interactive || f.terminal) {
				return errors.New("a command in the background has neither input nor a terminal: leave out -d, or -i and -t")
			}
			if _, command := splitCommand(args); len(command) > 0 {
				return nil
			}
			return errors.New("exec takes a VM and a command, as in: smolvm exec web -- uname -a (a shell is: smolvm shell web)")
		},
		ValidArgsFunction: g.completeVMs(1, isRunning),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, command := splitCommand(args)
			return g.with(cmd.Context(), name, func(vm *smolvm.VM) error {
				return execute(cmd.Context(), f, func(ctx context.Context) (*smolvm.Cmd, error) {
					return f.apply(vm.Command(ctx, command[0], command[1:]...))
				})
			})
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "pass standard input to the command")
	flags.BoolVarP(&f.terminal, "tty", "t", false, "run the command in a terminal, with this one's input and size")
	flags.BoolVarP(&f.detach, "detach", "d", false, "let the command run in the background; its output goes to the VM's log")
	f.register(cmd)
	return cmd
}

// splitCommand returns the VM's name and the command, which may have -- before it.
func splitCommand(args []string) (name string, command []string) {
	if len(args) == 0 {
		return "", nil
	}
	name, command = args[0], args[1:]
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	return name, command
}

// execute runs a command that is made with the context in which it lives.
func execute(ctx context.Context, f execFlags, command func(context.Context) (*smolvm.Cmd, error)) error {
	if f.terminal || f.detach {
		cmd, err := command(ctx)
		if err != nil {
			return err
		}
		if f.detach {
			return commandStatus(cmd.StartDetached())
		}
		return commandStatus(runInTerminal(ctx, cmd))
	}
	return commandStatus(relay(ctx, relaying{}, func(ctx context.Context) (relayed, error) {
		cmd, err := command(ctx)
		if err != nil {
			return nil, err
		}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if f.interactive {
			cmd.Stdin = os.Stdin
		}
		return cmd, nil
	}))
}
