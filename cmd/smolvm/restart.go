package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newRestartCommand(g *globals) *cobra.Command {
	return batch{
		use:   "restart VM...",
		short: "Stop VMs and start them again",
		long: `Stop VMs and start them again, with the same disks and the same ports. A VM that
does not run is only started.`,
		example:  "  smolvm restart web\n  smolvm restart --all",
		doing:    "restarting",
		all:      "restart all VMs that run",
		concerns: isAlive,
		starts:   true,
		do:       restart,
	}.command(g)
}

func restart(ctx context.Context, vm *smolvm.VM) error {
	info, err := vm.Info(ctx)
	if err != nil {
		return err
	}
	if isAlive(info) {
		if !info.Keep {
			return fmt.Errorf("cannot restart VM %s: it is removed as soon as it stops", info.Name)
		}
		if err := stop(ctx, vm); err != nil {
			return err
		}
	}
	return vm.Start(ctx)
}
