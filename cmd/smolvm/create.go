package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newCreateCommand(g *globals) *cobra.Command {
	var f vmFlags
	cmd := &cobra.Command{
		Use:   "create [flags] [IMAGE]",
		Short: "Make a VM, to be started later",
		Long: `Make a VM, to be started later, and print its name.

The image is made first if it is used for the first time, which takes about half a
minute.`,
		Example: `  smolvm create --name web
  smolvm start "$(smolvm create --memory 1024 --cpus 2)"
  smolvm create --name build --disk 20 -e CI=1 debian`,
		Args:              argsOfUse,
		ValidArgsFunction: g.completeImages(1),
	}
	f.register(g, cmd)
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			if err := f.takeImage(cmd, args[0]); err != nil {
				return err
			}
		}
		what, err := f.options()
		if err != nil {
			return err
		}
		opts, done := g.options()
		opts = append(append(opts, what...), smolvm.Keep())
		vm, err := smolvm.New(cmd.Context(), opts...)
		done()
		if err != nil {
			return interrupted(cmd.Context(), err, "no VM was made")
		}
		name := vm.Name()
		if *asJSON {
			err = printJSON(cmd.OutOrStdout(), batched{Name: name})
		} else {
			_, err = fmt.Fprintln(cmd.OutOrStdout(), name)
		}
		return errors.Join(err, vm.Close())
	}
	return cmd
}
