package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newLogsCommand(g *globals) *cobra.Command {
	var opts smolvm.LogOptions
	var owner bool
	cmd := &cobra.Command{
		Use:   "logs [flags] VM",
		Short: "Show what a VM said, whether it runs or not",
		Long: `Show a VM's log, whether it runs or not: what its kernel says, and what commands
write that run in the background. At a terminal it is shown without control
characters.`,
		Example: `  smolvm logs web
  smolvm logs -n 20 -f web
  smolvm logs --owner web      # what the process that runs the VM says`,
		Args: func(cmd *cobra.Command, args []string) error {
			if opts.Lines < 0 || opts.Lines == 0 && cmd.Flags().Changed("lines") {
				return errors.New("--lines must be at least 1")
			}
			return argsOfUse(cmd, args)
		},
		ValidArgsFunction: g.completeVMs(1, nil),
		RunE: func(cmd *cobra.Command, args []string) error {
			if owner {
				opts.Source = smolvm.OwnerLog
			}
			return g.with(cmd.Context(), args[0], func(vm *smolvm.VM) error {
				log, err := vm.Logs(cmd.Context(), opts)
				if err != nil {
					return err
				}
				defer log.Close()
				if _, err := io.Copy(forPeople(cmd.OutOrStdout()), log); err != nil {
					return endless(cmd.Context(), fmt.Errorf("show log of VM %s: %w", vm.Name(), err))
				}
				return nil
			})
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&opts.Follow, "follow", "f", false, "go on with what is added, until Ctrl-C")
	flags.IntVarP(&opts.Lines, "lines", "n", 0, "show the last `LINES` only (default: all)")
	flags.BoolVar(&owner, "owner", false, "show the log of the process that runs the VM")
	return cmd
}
