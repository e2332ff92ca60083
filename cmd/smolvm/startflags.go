package main

import (
	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// startFlags are those of verbs that start VMs.
type startFlags struct {
	accelerator string
	cold        bool
}

func (f *startFlags) register(cmd *cobra.Command) {
	settingVar(cmd, cmd.Flags(), &f.accelerator, "accel")
	settingVar(cmd, cmd.Flags(), &f.cold, "cold")
}

// options are the library's options that the flags stand for.
func (f *startFlags) options() []smolvm.Option {
	opts := []smolvm.Option{smolvm.Accelerate(smolvm.Accelerator(f.accelerator))}
	if f.cold {
		opts = append(opts, smolvm.ColdBoot())
	}
	return opts
}
