package main

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// completeVMs completes the names of VMs for which want is true; nil wants all of them. At most
// limit names are taken; 0 is any number.
func (g *globals) completeVMs(limit int, want func(smolvm.Info) bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if limit > 0 && len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		opts, _ := g.options()
		infos, err := smolvm.List(cmd.Context(), opts...)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []cobra.Completion
		for _, vm := range infos {
			if (want == nil || want(vm)) && !slices.Contains(args, vm.Name) {
				names = append(names, cobra.CompletionWithDesc(vm.Name, string(vm.Status)))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeImages completes the names of images. At most limit names are taken; 0 is any number.
func (g *globals) completeImages(limit int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if limit > 0 && len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		opts, _ := g.options()
		images, err := smolvm.Images(cmd.Context(), opts...)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []cobra.Completion
		for _, image := range images {
			if image.Current && !slices.Contains(args, image.Name) {
				names = append(names, cobra.CompletionWithDesc(image.Name, image.Description))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func isRunning(vm smolvm.Info) bool { return vm.Status == smolvm.StatusRunning }

// isAlive tells whether a VM has a guest, even a paused one.
func isAlive(vm smolvm.Info) bool {
	return vm.Status == smolvm.StatusRunning || vm.Status == smolvm.StatusPaused || vm.Status == smolvm.StatusStarting
}

// isHeld tells whether a VM can go on from where it is.
func isHeld(vm smolvm.Info) bool {
	return vm.Status == smolvm.StatusPaused || vm.Status == smolvm.StatusSuspended
}

// isDead tells whether there is something to start.
func isDead(vm smolvm.Info) bool { return vm.Err == nil && !isAlive(vm) }
