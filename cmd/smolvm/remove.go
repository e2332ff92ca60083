package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newRemoveCommand(g *globals) *cobra.Command {
	var force bool
	cmd := batch{
		use:   "rm VM...",
		short: "Remove VMs with their disks",
		long: `Remove VMs with their disks. There is no way back.

A VM that runs is not removed without --force, which stops it the hard way. That is
the way to remove one whose record is damaged, too: it may run.`,
		example:  "  smolvm rm web\n  smolvm rm --force web db\n  smolvm rm --all",
		doing:    "removing",
		all:      "remove all VMs that do not run; with --force all VMs",
		concerns: func(vm smolvm.Info) bool { return force || isDead(vm) },
		do: func(ctx context.Context, vm *smolvm.VM) error {
			if !force {
				info, err := vm.Info(ctx)
				if err != nil {
					return err
				}
				if isAlive(info) {
					return fmt.Errorf("cannot remove VM %s: it is %s; stop it first, or remove it with: smolvm rm --force %s",
						info.Name, info.Status, info.Name)
				}
			}
			return vm.Delete(ctx)
		},
	}.command(g)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove VMs that run, too")
	cmd.ValidArgsFunction = g.completeVMs(0, nil)
	return cmd
}
