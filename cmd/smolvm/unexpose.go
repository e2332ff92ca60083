package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newUnexposeCommand(g *globals) *cobra.Command {
	var all bool
	var wanted []wantedForward
	cmd := &cobra.Command{
		Use:   "unexpose VM PORT...",
		Short: "Take ports of a VM off localhost",
		Long: `Take ports of a VM off localhost. The host's ports are free at once, and connections
through them end.

PORT is a port of the host, as expose printed it: 8080 or 127.0.0.1:8080; or HOST:GUEST,
such as 8080:80; /udp follows those of UDP. Either all of them are taken off, or none.`,
		Example: `  smolvm unexpose web 8080
  smolvm unexpose web 8080:80 5353/udp 9000-9010
  smolvm unexpose web --all`,
		Args: func(_ *cobra.Command, args []string) (err error) {
			switch {
			case len(args) == 0 || len(args) == 1 && !all:
				return errors.New("unexpose takes a VM and ports of the host, as in: smolvm unexpose web 8080; all of them: smolvm unexpose web --all")
			case len(args) > 1 && all:
				return errors.New("unexpose takes either ports or --all")
			}
			wanted, err = parseWanted(args[1:])
			return err
		},
		ValidArgsFunction: g.completeHostPorts,
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return g.with(cmd.Context(), args[0], func(vm *smolvm.VM) error {
			ended, err := unexpose(cmd.Context(), vm, wanted, all)
			switch {
			case err != nil:
				return err
			case *asJSON:
				return printJSON(cmd.OutOrStdout(), withVM(vm.Name(), ended))
			}
			for _, f := range ended {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), localAddress(f.Pair)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	cmd.Flags().BoolVar(&all, "all", false, "take off all ports of the VM")
	return cmd
}

// wantedForward is a forward that is to end.
type wantedForward struct {
	smolvm.Pair
	text string // as it was written
}

// matches tells whether it is that one. Without a guest port it does not matter.
func (w wantedForward) matches(p smolvm.Pair) bool {
	return w.HostPort == p.HostPort && w.Protocol == p.Protocol && (w.GuestPort == 0 || w.GuestPort == p.GuestPort)
}

// parseWanted reads ports as people name those of forwards that there are.
func parseWanted(texts []string) ([]wantedForward, error) {
	var wanted []wantedForward
	for _, text := range texts {
		bare := text
		for _, address := range []string{"127.0.0.1:", "localhost:", "[::1]:"} {
			bare = strings.TrimPrefix(bare, address)
		}
		spec, err := smolvm.ParsePortSpec(bare)
		if err != nil {
			return nil, err
		}
		for _, req := range spec.Requests() {
			w := wantedForward{smolvm.Pair{HostPort: req.HostPort, GuestPort: req.GuestPort, Protocol: req.Protocol}, text}
			if !req.HostPortSet {
				w.HostPort, w.GuestPort = w.GuestPort, 0
			}
			wanted = append(wanted, w)
		}
	}
	return wanted, nil
}

// unexpose ends forwards and returns them.
func unexpose(ctx context.Context, vm *smolvm.VM, wanted []wantedForward, all bool) ([]smolvm.Forward, error) {
	info, err := vm.Info(ctx)
	if err != nil {
		return nil, err
	}
	ending := info.Forwards
	// The library says what it means that a VM does not run.
	if runs(info) && !all {
		if ending, err = choose(info, wanted); err != nil {
			return nil, err
		}
	}
	if err := vm.UnexposeAll(ctx, ending); err != nil {
		return nil, interrupted(ctx, err, "either all of the ports are unexposed or none; see: smolvm ports %s", vm.Name())
	}
	return ending, nil
}

// choose finds the forwards that were named.
func choose(info smolvm.Info, wanted []wantedForward) ([]smolvm.Forward, error) {
	var chosen []smolvm.Forward
	for _, w := range wanted {
		found := false
		for _, f := range info.Forwards {
			if w.matches(f.Pair) {
				found = true
				chosen = append(chosen, f)
			}
		}
		if !found {
			return nil, fmt.Errorf("VM %s exposes nothing on %s: %s", info.Name, w.text, listPairs(info.Forwards))
		}
	}
	return chosen, nil
}

// listPairs says what is exposed, on one line.
func listPairs(forwards []smolvm.Forward) string {
	if len(forwards) == 0 {
		return "it exposes nothing at all"
	}
	const most = 20
	var pairs []string
	for i, f := range forwards {
		if i == most {
			pairs = append(pairs, fmt.Sprintf("and %d more", len(forwards)-most))
			break
		}
		pairs = append(pairs, describePair(f.Pair))
	}
	return "there is " + strings.Join(pairs, ", ")
}

// completeHostPorts completes a VM that runs, and then the host's ports that lead into it.
func (g *globals) completeHostPorts(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return g.completeVMs(1, isRunning)(cmd, args, toComplete)
	}
	var ports []cobra.Completion
	err := g.with(cmd.Context(), args[0], func(vm *smolvm.VM) error {
		info, err := vm.Info(cmd.Context())
		for _, f := range info.Forwards {
			port := strconv.Itoa(f.HostPort)
			if f.Protocol == smolvm.UDP {
				port += "/udp"
			}
			ports = append(ports, cobra.CompletionWithDesc(port, "leads to "+guestPort(f)))
		}
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return ports, cobra.ShellCompDirectiveNoFileComp
}
