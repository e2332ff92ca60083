package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newRootCommand(g *globals) *cobra.Command {
	root := &cobra.Command{
		Use:   "smolvm",
		Short: "Small virtual machines, and what they serve on localhost",
		Long: `Small virtual machines, and what they serve on localhost.

VMs that create, start and run -d made live on their own until they are stopped;
what run makes in the foreground ends with it.

Exit codes: 0 if all was done, 1 if not, 2 for wrong usage. The verbs that pass on
the exit code of a command in the guest have others: see smolvm run --help.`,
		Example: `  smolvm run -p 8000 -- python3 -m http.server 8000
  smolvm create --name web && smolvm start web
  smolvm ls`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          checkVerb,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if !hasSettings(cmd) {
				return nil
			}
			return g.settle(cmd)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	g.register(root)
	for _, group := range verbs(g) {
		root.AddGroup(&cobra.Group{ID: group.title, Title: group.title + ":"})
		for _, verb := range group.verbs {
			verb.GroupID = group.title
			root.AddCommand(verb)
		}
	}
	root.AddCommand(newOwnCommand(), newManCommand())
	root.SetHelpCommand(newHelpCommand())
	root.SetHelpCommandGroupID("The host")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &usageError{cmd, flagError(err)} })
	g.prepare(root)
	return root
}

// hasSettings tells whether settings count for a verb. Those for which they do not work even if
// the configuration file is wrong, so that it can be found and mended.
func hasSettings(cmd *cobra.Command) bool {
	switch cmd.CommandPath() {
	case "smolvm", "smolvm help", "smolvm version", "smolvm completion", "smolvm config path", "smolvm man", "smolvm own":
		return false
	}
	return true
}

// verbGroup is verbs that stand together in the help.
type verbGroup struct {
	title string
	verbs []*cobra.Command
}

func verbs(g *globals) []verbGroup {
	return []verbGroup{
		{"VMs", []*cobra.Command{
			newRunCommand(g), newCreateCommand(g), newStartCommand(g), newStopCommand(g), newRestartCommand(g),
			newPauseCommand(g), newSuspendCommand(g), newResumeCommand(g), newForkCommand(g), newSnapshotCommand(g), newRemoveCommand(g), newRenameCommand(g), newWaitCommand(g),
		}},
		{"Inside VMs", []*cobra.Command{newExecCommand(g), newShellCommand(g), newCopyCommand(g), newEnvCommand(g), newLogsCommand(g)}},
		{"Ports", []*cobra.Command{newExposeCommand(g), newUnexposeCommand(g), newPortsCommand(g), newSSHConfigCommand(g), newProxyCommand(g)}},
		{"What there is", []*cobra.Command{newListCommand(g), newInspectCommand(g), newTopCommand(g)}},
		{"Images", []*cobra.Command{newImagesCommand(g), newPullCommand(g), newBuildCommand(g), newCommitCommand(g), newSaveCommand(g), newLoadCommand(g), newPushCommand(g), newRemoveImageCommand(g)}},
		{"The host", []*cobra.Command{newDoctorCommand(g), newPruneCommand(g), newConfigCommand(), newCompletionCommand(), newVersionCommand()}},
	}
}

// usageError says that a verb was not used rightly.
type usageError struct {
	cmd *cobra.Command
	err error
}

func (e *usageError) Error() string {
	return fmt.Sprintf("%v; see: %s --help", e.err, e.cmd.CommandPath())
}

func (e *usageError) Unwrap() error { return e.err }

// misuse is a usageError that a verb finds itself.
func misuse(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{cmd, fmt.Errorf(format, args...)}
}

// prepare gives a verb, and those below it, what all have in common.
func (g *globals) prepare(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return &usageError{cmd, err}
			}
			return nil
		}
	}
	if complete := cmd.ValidArgsFunction; complete != nil {
		cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			// Completion does not go the way of a verb that is run.
			if err := g.settle(cmd); err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			return complete(cmd, args, begun)
		}
	}
	for _, verb := range cmd.Commands() {
		g.prepare(verb)
	}
}

// flagError words an error about a flag's value as those about other settings are.
func flagError(err error) error {
	wrong, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return err
	}
	kinds := map[string]string{"int": "a whole number", "bool": "true or false", "duration": "a time, such as 10s"}
	kind, ok := kinds[wrong.GetFlag().Value.Type()]
	if !ok {
		return err
	}
	return fmt.Errorf("--%s must be %s, not %q", wrong.GetFlag().Name, kind, wrong.GetValue())
}

// checkVerb is for what remains when a command has no verb of the name that was given.
func checkVerb(parent *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	what := fmt.Sprintf("there is no verb %q", args[0])
	if parent.HasParent() {
		what += " of " + parent.CommandPath()
	}
	var names []string
	for _, verb := range parent.Commands() {
		if verb.IsAvailableCommand() {
			names = append(append(names, verb.Name()), verb.Aliases...)
		}
	}
	if similar := closest(args[0], names); similar != "" {
		what += ": did you mean " + similar + "?"
	}
	return errors.New(what)
}

// argsOfUse accepts the arguments that the verb's Use announces: "OLD NEW", "VM...", "[IMAGE]".
func argsOfUse(cmd *cobra.Command, args []string) error {
	var least, most int
	var names []string
	for _, word := range strings.Fields(cmd.Use)[1:] {
		if word == "[flags]" {
			continue
		}
		name := strings.Trim(word, "[]")
		if strings.HasSuffix(name, "...") {
			most = len(args)
		}
		most++
		names = append(names, strings.TrimSuffix(name, "..."))
		if !strings.HasPrefix(word, "[") {
			least++
		}
	}
	switch {
	case len(args) < least:
		return fmt.Errorf("%s is missing: %s", names[len(args)], usageOf(cmd))
	case len(args) > most:
		return fmt.Errorf("%q is too much: %s", args[most], usageOf(cmd))
	}
	return nil
}

// usageOf is how a verb is used, in one line.
func usageOf(cmd *cobra.Command) string {
	return strings.TrimSuffix(cmd.CommandPath(), cmd.Name()) + cmd.Use
}
