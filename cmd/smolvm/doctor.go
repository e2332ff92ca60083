package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newDoctorCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what works on this host, what does not, and what to do",
		Long: `Tell what works on this host, what does not, and what to do.

The exit code is 1 if VMs cannot run here. What only makes them slower or less
safe is a warning.`,
		Example: "  smolvm doctor\n  smolvm doctor --json | jq '.[] | select(.verdict != \"ok\")'",
		Args:    argsOfUse,
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		opts, done := g.options()
		g.progress().say("trying what works here")
		checks, err := smolvm.Diagnose(cmd.Context(), opts...)
		done()
		if err != nil {
			return err
		}
		if *asJSON {
			err = printJSON(cmd.OutOrStdout(), checks)
		} else {
			err = printChecks(cmd.OutOrStdout(), checks, g.colored(cmd.OutOrStdout()))
		}
		for _, c := range checks {
			if err == nil && c.Verdict == smolvm.Broken {
				return exitStatus(exitFailed)
			}
		}
		return err
	}
	return cmd
}

func printChecks(out io.Writer, checks []smolvm.Check, colored bool) error {
	for _, c := range checks {
		verdict := fmt.Sprintf("%-8s", plain(string(c.Verdict)))
		if colored {
			verdict = verdictColour(c.Verdict).paint(verdict)
		}
		if _, err := fmt.Fprintf(out, "%s %-16s %s\n", verdict, plain(c.Name), plain(c.Detail)); err != nil {
			return err
		}
		if c.Advice != "" {
			if _, err := fmt.Fprintf(out, "%25s -> %s\n", "", plain(c.Advice)); err != nil {
				return err
			}
		}
	}
	return nil
}

func verdictColour(v smolvm.Verdict) colour {
	switch v {
	case smolvm.OK:
		return green
	case smolvm.Warning:
		return yellow
	}
	return red
}
