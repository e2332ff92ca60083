package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newStopCommand(g *globals) *cobra.Command {
	var force bool
	var timeout uint
	cmd := batch{
		use:   "stop VM...",
		short: "Stop VMs and keep their disks",
		long: `Stop VMs and keep their disks; those of run --rm are removed.

The main process, if there is one, is asked to end by its stop signal, and has the time
of --timeout for that. Then the guest's processes are ended, its disk is written and it
powers off. With --force
it is stopped at once, as if its power failed: what it has not written to its disk
is lost. Ctrl-C does that to what has not stopped yet.`,
		example:  "  smolvm stop web\n  smolvm stop web db\n  smolvm stop --all",
		doing:    "stopping",
		all:      "stop all VMs that run",
		concerns: isAlive,
		do: func(ctx context.Context, vm *smolvm.VM) error {
			if force {
				return vm.Kill(ctx)
			}
			return stop(ctx, vm, smolvm.Grace(time.Duration(timeout)*time.Second))
		},
	}.command(g)
	cmd.Flags().UintVarP(&timeout, "timeout", "t", uint(smolvm.DefaultGrace.Seconds()), "how many `SECONDS` the main process has to end when it is asked to; 0: it is not asked")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "stop VMs at once, as if their power failed")
	return cmd
}

// hardStopTimeout bounds the wait for a stop that an interruption has made a hard one.
const hardStopTimeout = 5 * time.Second

func stop(ctx context.Context, vm *smolvm.VM, opts ...smolvm.StopOption) error {
	err := vm.Stop(ctx, opts...)
	if ctx.Err() != nil {
		// Its owner stops it the hard way now.
		ended, cancel := context.WithTimeout(context.WithoutCancel(ctx), hardStopTimeout)
		defer cancel()
		_ = vm.Wait(ended) // what came of it is seen by the VM's status
	}
	return err
}
