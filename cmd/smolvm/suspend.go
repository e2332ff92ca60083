package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newSuspendCommand(g *globals) *cobra.Command {
	return batch{
		use:   "suspend VM...",
		short: "Save VMs to the disk, memory and all, and stop them",
		long: `Save VMs to the disk, memory and all, and stop them. They take neither memory nor
processor then, and smolvm start, or resume, lets them go on where they were: at any
later time, and after the host was off. What they had exposed is exposed again.`,
		example:  "  smolvm suspend web\n  smolvm start web\n  smolvm suspend --all",
		doing:    "suspending",
		all:      "suspend all VMs that run or are paused",
		concerns: isAlive,
		do:       func(ctx context.Context, vm *smolvm.VM) error { return vm.Suspend(ctx) },
	}.command(g)
}
