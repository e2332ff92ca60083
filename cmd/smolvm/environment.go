package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// environment completes entries of an environment as people write them: a name alone stands
// for this program's own variable.
func environment(entries []string) ([]string, error) {
	env := make([]string, len(entries))
	for i, entry := range entries {
		name, _, whole := strings.Cut(entry, "=")
		if name == "" {
			return nil, fmt.Errorf("variable %q has no name: write NAME=VALUE", entry)
		}
		if !whole {
			value, ok := os.LookupEnv(entry)
			if !ok {
				return nil, fmt.Errorf("variable %q has no value: write %s=VALUE, or set it for smolvm", entry, entry)
			}
			entry += "=" + value
		}
		env[i] = entry
	}
	return env, nil
}

func newEnvCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Show or change the environment of a VM's commands",
		Long: `Show or change the environment that every command in a VM starts with, SSH logins
included. It is kept with the VM, and changes count for commands that are started
afterwards.`,
		Args: checkVerb,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newEnvSetCommand(g), newEnvUnsetCommand(g), newEnvListCommand(g))
	return cmd
}

func newEnvSetCommand(g *globals) *cobra.Command {
	var entries []string
	return &cobra.Command{
		Use:   "set VM NAME=VALUE...",
		Short: "Set variables; NAME alone passes this shell's on",
		Example: `  smolvm env set web DEBUG=1 PORT=8000
  smolvm env set web GITHUB_TOKEN`,
		Args: func(cmd *cobra.Command, args []string) (err error) {
			if err := argsOfUse(cmd, args); err != nil {
				return err
			}
			entries, err = environment(args[1:])
			return err
		},
		ValidArgsFunction: g.completeVMs(1, nil),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), args[0], func(vm *smolvm.VM) error {
				return vm.SetEnv(cmd.Context(), entries...)
			})
		},
	}
}

func newEnvUnsetCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "unset VM NAME...",
		Short:   "Take variables away; those that are not set do not matter",
		Example: `  smolvm env unset web DEBUG PORT`,
		Args:    argsOfUse,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return g.completeVMs(1, nil)(cmd, args, toComplete)
			}
			var names []cobra.Completion
			err := g.with(cmd.Context(), args[0], func(vm *smolvm.VM) error {
				info, err := vm.Info(cmd.Context())
				for _, entry := range info.Env {
					name, _, _ := strings.Cut(entry, "=")
					names = append(names, name)
				}
				return err
			})
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), args[0], func(vm *smolvm.VM) error {
				return vm.UnsetEnv(cmd.Context(), args[1:]...)
			})
		},
	}
}

func newEnvListCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls VM",
		Aliases: []string{"list"},
		Short:   "List the variables: NAME=VALUE, or with --json an object",
		Example: `  smolvm env ls web
  smolvm env ls web --json | jq -r .PORT`,
		Args:              argsOfUse,
		ValidArgsFunction: g.completeVMs(1, nil),
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return g.with(cmd.Context(), args[0], func(vm *smolvm.VM) error {
			info, err := vm.Info(cmd.Context())
			if err != nil {
				return err
			}
			return printEnvironment(cmd.OutOrStdout(), info.Env, *asJSON)
		})
	}
	return cmd
}

func printEnvironment(out io.Writer, env []string, asJSON bool) error {
	if asJSON {
		variables := make(map[string]string, len(env))
		for _, entry := range env {
			name, value, _ := strings.Cut(entry, "=")
			variables[name] = value
		}
		return printJSON(out, variables)
	}
	for _, entry := range env {
		if isTerminal(out) {
			entry = plain(entry)
		}
		if _, err := fmt.Fprintln(out, entry); err != nil {
			return err
		}
	}
	return nil
}
