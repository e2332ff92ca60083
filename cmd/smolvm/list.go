package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// listed is a VM in the output for programs. Its field names are a contract.
type listed struct {
	smolvm.Info
	Error string `json:"error,omitempty"` // why there is no more to say of it
}

func newListed(vm smolvm.Info) listed {
	l := listed{Info: vm}
	if l.Forwards == nil {
		l.Forwards = []smolvm.Forward{}
	}
	if vm.Err != nil {
		l.Error = plain(vm.Err.Error())
	}
	return l
}

func newListCommand(g *globals) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list", "ps"},
		Short:   "List VMs",
		Long: `List VMs, those of Go programs included.

A VM whose record cannot be read is listed with the reason, and does not keep the
others from being listed.`,
		Example: `  smolvm ls
  smolvm ls --json | jq -r '.[] | select(.status == "running") | .ip'
  smolvm stop $(smolvm ls -q)`,
		Args: argsOfUse,
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names only")
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		infos, err := g.list(cmd.Context())
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if *asJSON {
			vms := make([]listed, len(infos))
			for i, vm := range infos {
				vms[i] = newListed(vm)
			}
			return printJSON(out, vms)
		}
		if quiet {
			for _, vm := range infos {
				if _, err := fmt.Fprintln(out, plain(vm.Name)); err != nil {
					return err
				}
			}
			return nil
		}
		t := vmTable(newTable(out, "NAME", "STATUS", "IMAGE", "AGE", "MEMORY", "PORTS"), infos, time.Now())
		if g.colored(out) {
			t.colours = statusColour
		}
		return t.flush()
	}
	return cmd
}

// vmTable fills a table with VMs.
func vmTable(t *table, infos []smolvm.Info, now time.Time) *table {
	for _, vm := range infos {
		switch {
		case vm.Status == "": // the record cannot be read
			t.row(vm.Name, "damaged", vm.Err.Error())
			continue
		case vm.Err != nil:
			t.row(vm.Name, "unknown", vm.Image, age(now.Sub(vm.Created)), "-", vm.Err.Error())
			continue
		}
		memory := "-"
		if isAlive(vm) {
			memory = size(vm.Usage.Memory)
		}
		t.row(vm.Name, statusText(vm), vm.Image, age(now.Sub(vm.Created)), memory, cmp.Or(ports(vm.Forwards), "-"))
	}
	return t
}

// restarting begins the status of a VM whose main process is about to be started again.
const restarting = "restarting"

// statusText is the status of a VM in short, with how its main process ended.
func statusText(vm smolvm.Info) string {
	if vm.Main == nil || vm.Main.ExitCode == nil {
		return string(vm.Status)
	}
	switch vm.Status {
	case smolvm.StatusStopped:
		return fmt.Sprintf("exited (%d)", *vm.Main.ExitCode)
	case smolvm.StatusRunning:
		return fmt.Sprintf("%s (%d)", restarting, *vm.Main.ExitCode)
	}
	return string(vm.Status)
}

// ports are forwards in short: "8080->80, 5353->53/udp". Those that lead to the same port of
// the guest's are "8000->", as ranges are "9000-9010->".
func ports(forwards []smolvm.Forward) string {
	// Runs of ports that go up together, both sides, are one.
	type span struct{ first, last smolvm.Forward }
	var spans []span
	forwards = slices.SortedFunc(slices.Values(forwards), func(a, b smolvm.Forward) int {
		return cmp.Or(cmp.Compare(b.Protocol, a.Protocol)*-1, cmp.Compare(a.HostPort, b.HostPort))
	})
	for _, f := range forwards {
		if n := len(spans); n > 0 {
			if last := spans[n-1].last; last.Protocol == f.Protocol && last.HostPort+1 == f.HostPort && last.GuestPort+1 == f.GuestPort {
				spans[n-1].last = f
				continue
			}
		}
		spans = append(spans, span{f, f})
	}
	texts := make([]string, len(spans))
	for i, s := range spans {
		host, guest := strconv.Itoa(s.first.HostPort), strconv.Itoa(s.first.GuestPort)
		if s.first != s.last {
			host, guest = fmt.Sprintf("%s-%d", host, s.last.HostPort), fmt.Sprintf("%s-%d", guest, s.last.GuestPort)
		}
		texts[i] = host + "->" + guest
		if s.first.Protocol == smolvm.UDP {
			texts[i] += "/udp"
		}
	}
	return strings.Join(texts, ", ")
}

// guestPort is the guest's side of a forward: "80", "53/udp".
func guestPort(f smolvm.Forward) string {
	port := strconv.Itoa(f.GuestPort)
	if f.Protocol == smolvm.UDP {
		port += "/udp"
	}
	return port
}

// statusColour is the colour of the second column.
func statusColour(column int, text string) colour {
	if column != 1 {
		return ""
	}
	status, _, _ := strings.Cut(text, " (")
	switch status {
	case string(smolvm.StatusRunning):
		return green
	case string(smolvm.StatusPaused), string(smolvm.StatusSuspended), string(smolvm.StatusStarting), restarting:
		return yellow
	case "damaged", "unknown":
		return red
	}
	return ""
}
