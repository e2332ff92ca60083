package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newStartCommand(g *globals) *cobra.Command {
	return batch{
		use:   "start VM...",
		short: "Start VMs, which then live on their own",
		long: `Start VMs, which then live on their own: each is run by a background process.

It returns once the guests take commands. A VM that was suspended goes on from where
it was. What was exposed when a VM was last stopped is exposed again. Prints the name
of each VM as it is up.`,
		example:  "  smolvm start web\n  smolvm start web db cache\n  smolvm start --all",
		doing:    "starting",
		all:      "start all VMs that do not run",
		concerns: isDead,
		starts:   true,
		do:       func(ctx context.Context, vm *smolvm.VM) error { return vm.Start(ctx) },
	}.command(g)
}
