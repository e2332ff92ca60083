package main

import (
	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// startFlags are those of verbs that start VMs.
type startFlags struct {
	accelerator string
	cold        bool
	// discard is of verbs only that start VMs which there are.
	discard bool
}

func (f *startFlags) register(cmd *cobra.Command) {
	settingVar(cmd, cmd.Flags(), &f.accelerator, "accel")
	settingVar(cmd, cmd.Flags(), &f.cold, "cold")
}

// registerAgain registers what only VMs can be started with that were started before.
func (f *startFlags) registerAgain(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.discard, "discard-memory", false, "boot VMs that were suspended: what is only in their memory is lost")
}

// options are the library's options that the flags stand for.
func (f *startFlags) options() []smolvm.Option {
	opts := []smolvm.Option{smolvm.Accelerate(smolvm.Accelerator(f.accelerator))}
	if f.cold {
		opts = append(opts, smolvm.ColdBoot())
	}
	if f.discard {
		opts = append(opts, smolvm.DiscardMemory())
	}
	return opts
}
