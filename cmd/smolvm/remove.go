package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newRemoveCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rm VM...",
		Short:   "Remove VMs that run --rm=false kept, with their disks",
		Example: "  smolvm run --rm=false --name web -- true\n  smolvm rm web",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			opts, _ := g.options()
			var errs []error
			for _, name := range names {
				vm, err := smolvm.Open(cmd.Context(), name, opts...)
				if err == nil {
					err = vm.Delete(cmd.Context())
				}
				if err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintln(cmd.OutOrStdout(), name)
			}
			return errors.Join(errs...)
		},
	}
	cmd.ValidArgsFunction = func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		opts, _ := g.options()
		infos, err := smolvm.List(cmd.Context(), opts...)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []cobra.Completion
		for _, v := range infos {
			names = append(names, v.Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	return cmd
}
