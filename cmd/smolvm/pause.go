package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newPauseCommand(g *globals) *cobra.Command {
	return batch{
		use:   "pause VM...",
		short: "Hold VMs where they are",
		long: `Hold VMs where they are, until smolvm resume: their processors stop, their memory
and their ports stay. Who connects meanwhile waits.`,
		example:  "  smolvm pause web\n  smolvm pause --all",
		doing:    "pausing",
		all:      "pause all VMs that run",
		concerns: isRunning,
		do:       func(ctx context.Context, vm *smolvm.VM) error { return vm.Pause(ctx) },
	}.command(g)
}

func newResumeCommand(g *globals) *cobra.Command {
	return batch{
		use:      "resume VM...",
		short:    "Let paused and suspended VMs go on",
		example:  "  smolvm resume web\n  smolvm resume --all",
		doing:    "resuming",
		all:      "resume all VMs that are paused or suspended",
		concerns: isHeld,
		do:       func(ctx context.Context, vm *smolvm.VM) error { return vm.Resume(ctx) },
	}.command(g)
}
