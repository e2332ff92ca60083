package main

import (
	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// newOwnCommand is the background process that runs a VM. People have no use for it.
func newOwnCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "own VM",
		Short:  "Run a VM in the background, for smolvm itself",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return smolvm.Own(cmd.Context(), args[0], smolvm.Version(version))
		},
	}
}
