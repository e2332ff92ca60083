package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newRenameCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rename VM NAME",
		Short: "Give a VM that does not run another name",
		Long: `Give a VM that does not run another name. Its guest knows itself by it from the next
start on. Prints the new name.`,
		Example:           "  smolvm rename web web-old",
		Args:              argsOfUse,
		ValidArgsFunction: g.completeVMs(1, isDead),
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		opts, done := g.options()
		vm, err := smolvm.Open(cmd.Context(), names[0], opts...)
		if err == nil {
			err = errors.Join(vm.Rename(cmd.Context(), names[1]), vm.Close())
		}
		done()
		switch {
		case err != nil:
			return err
		case *asJSON:
			return printJSON(cmd.OutOrStdout(), batched{Name: names[1]})
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), names[1])
		return err
	}
	return cmd
}
