package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newCreateCommand(g *globals) *cobra.Command {
	var f vmFlags
	var main mainFlags
	cmd := &cobra.Command{
		Use:   "create [flags] [IMAGE] [-- COMMAND [ARG...]]",
		Short: "Make a VM, to be started later",
		Long: `Make a VM, to be started later, and print its name.

The image is made first if it is used for the first time, which takes about half a
minute.

A command, or the image's own if it was made of a container image that has one, is
the VM's main process: it is run whenever the VM is started, and when it ends the VM
is stopped, unless --restart says otherwise. What it writes is in smolvm logs. What is
behind -- takes the place of the image's own but for its entry point. A VM without a
command runs until it is stopped; --entrypoint '' makes one of any image.`,
		Example: `  smolvm create --name web
  smolvm start "$(smolvm create --memory 1024 --cpus 2)"
  smolvm create --name build --disk 20 -e CI=1 debian
  smolvm create --name cache -p 6379 --restart always redis:8-alpine`,
		Args: func(cmd *cobra.Command, args []string) error {
			_, err := checkImage(cmd, args)
			return err
		},
		ValidArgsFunction: g.completeImages(1),
	}
	f.register(g, cmd)
	main.register(cmd)
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		command, err := main.take(cmd, &f, args)
		if err != nil {
			return err
		}
		what, err := f.options()
		if err != nil {
			return err
		}
		runs, err := main.options()
		if err != nil {
			return err
		}
		opts, done := g.options()
		opts = append(slices.Concat(opts, what, runs, main.mainProcess(command)), smolvm.Keep())
		vm, err := smolvm.New(cmd.Context(), opts...)
		done()
		if err != nil {
			return interrupted(cmd.Context(), err, "no VM was made")
		}
		name := vm.Name()
		if *asJSON {
			err = printJSON(cmd.OutOrStdout(), batched{Name: name})
		} else {
			_, err = fmt.Fprintln(cmd.OutOrStdout(), name)
		}
		return errors.Join(err, vm.Close())
	}
	return cmd
}
