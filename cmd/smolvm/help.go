package main

import (
	"github.com/spf13/cobra"
)

func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "help [VERB...]",
		Short:   "Explain a verb",
		Example: "  smolvm help run\n  smolvm help env set",
		Args: func(cmd *cobra.Command, args []string) error {
			_, err := explained(cmd, args)
			return err
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var verbs []cobra.Completion
			parent, err := explained(cmd, args)
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			for _, verb := range parent.Commands() {
				if verb.IsAvailableCommand() {
					verbs = append(verbs, cobra.CompletionWithDesc(verb.Name(), verb.Short))
				}
			}
			return verbs, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			verb, err := explained(cmd, args)
			if err != nil {
				return err
			}
			verb.InitDefaultHelpFlag() // which is to be among its flags
			return verb.Help()
		},
	}
}

// explained is the verb that help is asked about.
func explained(cmd *cobra.Command, args []string) (*cobra.Command, error) {
	verb, rest, err := cmd.Root().Find(args)
	if err == nil {
		err = checkVerb(verb, rest)
	}
	if err != nil {
		return nil, &usageError{verb, err}
	}
	return verb, nil
}
