package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"
)

// completionShells are the shells that can complete smolvm's command lines.
func completionShells() []cobra.Completion { return []cobra.Completion{"bash", "zsh", "fish"} }

func newCompletionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print what lets a shell complete verbs, VMs and ports",
		Long: `Print what lets a shell complete verbs, flags, the names of VMs and images, and ports.
SHELL is bash, zsh or fish. Bash needs the Debian package bash-completion.`,
		Example: `  . <(smolvm completion bash)     # for this shell only
  smolvm completion bash >~/.local/share/bash-completion/completions/smolvm
  smolvm completion zsh >"${fpath[1]}/_smolvm"
  smolvm completion fish >~/.config/fish/completions/smolvm.fish`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := argsOfUse(cmd, args); err != nil {
				return err
			}
			if shells := completionShells(); !slices.Contains(shells, args[0]) {
				return fmt.Errorf("SHELL must be %s, not %q", either(shells), args[0])
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completionShells(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			const withDescriptions = true
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, withDescriptions)
			case "zsh":
				return root.GenZshCompletion(out)
			default:
				return root.GenFishCompletion(out, withDescriptions)
			}
		},
	}
}
