package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// listed is a VM in the output of ls --json. Its field names are a contract.
type listed struct {
	Name     string        `json:"name"`
	Status   smolvm.Status `json:"status,omitempty"`
	Image    string        `json:"image,omitempty"`
	Created  time.Time     `json:"created,omitzero"`
	Memory   int           `json:"memory_mib,omitempty"`
	CPUs     int           `json:"cpus,omitempty"`
	OwnerPID int           `json:"owner_pid,omitempty"`
	Error    string        `json:"error,omitempty"`
}

func newListCommand(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List VMs",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts, _ := g.options()
			infos, err := smolvm.List(cmd.Context(), opts...)
			if err != nil {
				return err
			}
			vms := make([]listed, len(infos))
			for i, v := range infos {
				vms[i] = listed{v.Name, v.Status, v.Image, v.Created, v.MemoryMiB, v.CPUs, v.Owner.PID, ""}
				if v.Err != nil {
					vms[i].Error = v.Err.Error()
				}
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(vms)
			}
			return printVMs(cmd.OutOrStdout(), vms)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printVMs(out io.Writer, vms []listed) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATUS\tIMAGE\tMEMORY\tCPUS\tCREATED\tOWNER")
	for _, v := range vms {
		if v.Error != "" {
			fmt.Fprintf(w, "%s\tdamaged\t%s\n", v.Name, v.Error)
			continue
		}
		owner := "-"
		if v.OwnerPID != 0 {
			owner = fmt.Sprintf("pid %d", v.OwnerPID)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d MiB\t%d\t%s\t%s\n", v.Name, v.Status, v.Image, v.Memory, v.CPUs,
			v.Created.Local().Format("2006-01-02 15:04"), owner)
	}
	return w.Flush()
}
