package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newWaitCommand(g *globals) *cobra.Command {
	return batch{
		use:   "wait VM...",
		short: "Wait until VMs do not run any more",
		long: `Wait until VMs do not run any more. Their names are printed as they end. One that
does not run has ended already.`,
		example: `  smolvm wait job1 job2
  smolvm wait web && echo web has ended`,
		doing:    "waiting for",
		all:      "all VMs that run",
		concerns: runs,
		do:       func(ctx context.Context, vm *smolvm.VM) error { return vm.Wait(ctx) },
	}.command(g)
}
