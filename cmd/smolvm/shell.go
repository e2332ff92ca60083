package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newShellCommand(g *globals) *cobra.Command {
	var f guestFlags
	cmd := &cobra.Command{
		Use:   "shell [flags] VM",
		Short: "Open a shell in a VM that runs",
		Long: `Open a login shell in a VM that runs.

At a terminal the shell has one of its own, and all that is typed goes to the guest.
Otherwise it runs what comes from standard input. The exit code is the shell's; 125
if smolvm failed.`,
		Example: `  smolvm shell web
  smolvm shell -e DEBUG=1 -w /srv web
  echo 'apt-get update && apt-get install -y nginx' | smolvm shell web`,
		Args:              argsOfUse,
		ValidArgsFunction: g.completeVMs(1, isRunning),
		RunE: func(cmd *cobra.Command, args []string) error {
			how := execFlags{terminal: isTerminal(os.Stdin), interactive: true}
			return g.with(cmd.Context(), args[0], func(vm *smolvm.VM) error {
				return execute(cmd.Context(), how, func(ctx context.Context) (*smolvm.Cmd, error) {
					return f.apply(vm.Shell(ctx))
				})
			})
		},
	}
	f.register(cmd)
	return cmd
}
