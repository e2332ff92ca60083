package main

import (
	"context"
	"strconv"
	"sync"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newWaitCommand(g *globals) *cobra.Command {
	var exitCode bool
	var ends sync.Map // exit codes of main processes, by the VMs' names
	cmd := batch{
		use:   "wait VM...",
		short: "Wait until VMs do not run any more",
		long: `Wait until VMs do not run any more. Their names are printed as they end, or the exit
codes of their main processes with --exit-code. One that does not run has ended already.
A VM that is to be started again, by --restart, has not ended.`,
		example: `  smolvm wait job1 job2
  smolvm wait web && echo web has ended
  smolvm wait --exit-code "$(smolvm run -d -- make -C /src)"`,
		doing:    "waiting for",
		all:      "all VMs that run",
		concerns: runs,
		do: func(ctx context.Context, vm *smolvm.VM) error {
			main, err := vm.WaitMain(ctx)
			if main != nil && main.ExitCode != nil {
				ends.Store(vm.Name(), *main.ExitCode)
			}
			return err
		},
		told: func(b *batched) string {
			text := "-"
			if code, ok := ends.Load(b.Name); ok {
				n := code.(int)
				b.ExitCode, text = &n, strconv.Itoa(n)
			}
			if !exitCode {
				return b.Name
			}
			return text
		},
	}.command(g)
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "print the exit codes of the main processes in place of the names, or - where none is known")
	return cmd
}
