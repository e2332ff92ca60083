package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newDoctorCommand(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what works on this host, what does not, and what to do",
		Long: `Tell what works on this host, what does not, and what to do.

The exit code is 1 if VMs cannot run here. What only makes them slower or less
safe is a warning.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts, done := g.options()
			checks, err := smolvm.Diagnose(cmd.Context(), opts...)
			done()
			if err != nil {
				return err
			}
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(checks)
			} else {
				err = printChecks(cmd.OutOrStdout(), checks)
			}
			for _, c := range checks {
				if err == nil && c.Verdict == smolvm.Broken {
					return exitStatus(exitDoctorSick)
				}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printChecks(out io.Writer, checks []smolvm.Check) error {
	for _, c := range checks {
		if _, err := fmt.Fprintf(out, "%-8s %-16s %s\n", c.Verdict, c.Name, c.Detail); err != nil {
			return err
		}
		if c.Advice != "" {
			if _, err := fmt.Fprintf(out, "%25s -> %s\n", "", c.Advice); err != nil {
				return err
			}
		}
	}
	return nil
}
