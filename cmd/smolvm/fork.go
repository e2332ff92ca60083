package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newForkCommand(g *globals) *cobra.Command {
	var (
		number int
		name   string
		env    []string
	)
	cmd := &cobra.Command{
		Use:   "fork [flags] VM",
		Short: "Copy a VM, memory and all, into new ones that run",
		Long: `Copy a VM, with its memory, its programs and its disk, into new ones, which go on
from where it is, and print their names. The VM itself goes on after a moment.

Each copy has a name, an address, an SSH host key, a machine ID and random numbers of
its own, and nothing exposed. Copies share with each other, and with the VM, what none
of them writes. A VM that does not run is copied with its disk, and the copies boot.`,
		Example: `  smolvm fork web
  smolvm fork web -n 8 --name worker
  smolvm expose "$(smolvm fork web)" 8000`,
		Args:              argsOfUse,
		ValidArgsFunction: g.completeVMs(1, nil),
	}
	flags := cmd.Flags()
	flags.IntVarP(&number, "number", "n", 1, "how many copies to make")
	flags.StringVar(&name, "name", "", "name of the copy; several get a number each: NAME-1 (default: made up)")
	flags.StringArrayVarP(&env, "env", "e", nil, "add a variable for commands in the copies: `NAME=VALUE`, or NAME to pass the host's on (may be repeated)")
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		entries, err := environment(env)
		if err != nil {
			return err
		}
		opts, done := g.options()
		defer done()
		vm, err := smolvm.Open(ctx, args[0], opts...)
		if err != nil {
			return err
		}
		g.progress().say("copying " + args[0])
		copies, err := vm.Fork(ctx, number, smolvm.Name(name), smolvm.Env(entries...), smolvm.Keep())
		err = errors.Join(err, vm.Close())
		done()
		if err != nil {
			return interrupted(ctx, err, "no copy was made")
		}
		list := make([]batched, len(copies))
		for i, c := range copies {
			list[i].Name = c.Name()
			err = errors.Join(err, c.Close())
		}
		return errors.Join(err, printNames(cmd, list, *asJSON))
	}
	return cmd
}

// printNames prints names, a line each, or as JSON.
func printNames(cmd *cobra.Command, list []batched, asJSON bool) error {
	if asJSON {
		return printJSON(cmd.OutOrStdout(), list)
	}
	for _, b := range list {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), b.Name); err != nil {
			return err
		}
	}
	return nil
}
