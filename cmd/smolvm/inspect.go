package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newInspectCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect NAME...",
		Short: "Tell all that is known of VMs and images, as JSON",
		Long: `Tell all that is known of VMs and images, as JSON: of one an object, of several a list.
A name that no VM has is an image's. At a terminal, without --json, it is laid out for
people.`,
		Example: `  smolvm inspect web
  smolvm inspect web | jq -r .vmm.accel
  smolvm inspect web db | jq -r '.[] | .name + " " + .ip'
  smolvm inspect debian | jq .kernel`,
		Args:              argsOfUse,
		ValidArgsFunction: g.completeVMs(0, nil),
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		var found []any
		var failed failures
		for _, name := range names {
			err := g.with(cmd.Context(), name, func(vm *smolvm.VM) error {
				info, err := vm.Info(cmd.Context())
				if err == nil {
					found = append(found, newListed(info))
				}
				return err
			})
			if errors.Is(err, smolvm.ErrNotFound) || errors.Is(err, smolvm.ErrInvalidName) {
				opts, done := g.options()
				image, imageErr := smolvm.InspectImage(cmd.Context(), name, opts...)
				done()
				if imageErr == nil {
					found = append(found, image)
					continue
				}
			}
			if err != nil {
				failed = append(failed, &vmError{name, err})
			}
		}
		var value any = found
		if len(names) == 1 && len(found) == 1 {
			value = found[0]
		}
		indent := "  "
		if *asJSON || !isTerminal(cmd.OutOrStdout()) {
			indent = ""
		}
		if len(found) > 0 {
			return also(together(failed), encodeJSON(cmd.OutOrStdout(), value, indent))
		}
		return together(failed)
	}
	return cmd
}
