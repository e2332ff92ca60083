package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

type exposeFlags struct {
	strict    bool
	wait      time.Duration
	transport string
}

func newExposeCommand(g *globals) *cobra.Command {
	var f exposeFlags
	var specs []smolvm.PortSpec
	cmd := &cobra.Command{
		Use:   "expose [flags] VM [HOST:]GUEST[/udp]...",
		Short: "Put ports of a VM on localhost",
		Long: `Put ports of a VM on localhost: on 127.0.0.1 and ::1, and nowhere else.

Prints 127.0.0.1:PORT for each, the only thing on standard output when that is no
terminal. Without HOST any free port is taken; a HOST that is busy is replaced by
the next free one, unless --strict is given. Ports may be ranges of the same
length. It does not wait for a server in the guest, unless --wait is given.

Either all of them are exposed, or none. They stay so until unexpose, and are
exposed again when the VM is started again.`,
		Example: `  smolvm expose web 8000
  smolvm expose web 8080:80 5353:53/udp 9000-9010
  curl http://$(smolvm expose --wait 10s web 8000)/
  smolvm expose --strict --json web 8080:80 | jq '.[0].host_port'`,
		Args: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) < 2 {
				return errors.New("expose takes a VM and ports, as in: smolvm expose web 8000 8080:80")
			}
			if f.wait < 0 {
				return errors.New("--wait must not be negative")
			}
			specs, err = parsePorts(args[1:])
			return err
		},
		ValidArgsFunction: g.completeVMs(1, isRunning),
	}
	jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return g.with(cmd.Context(), args[0], func(vm *smolvm.VM) error {
			return f.expose(cmd.Context(), g, vm, specs, cmd.OutOrStdout())
		})
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.strict, "strict", false, "fail if a host port is busy, rather than take the next free one")
	flags.DurationVar(&f.wait, "wait", 0, "wait this long, such as 10s, until servers in the guest listen; if none does, the exit code is 1, and the ports stay exposed")
	settingVar(cmd, flags, &f.transport, "transport")
	return cmd
}

func parsePorts(texts []string) (specs []smolvm.PortSpec, err error) {
	specs = make([]smolvm.PortSpec, len(texts))
	for i, text := range texts {
		if specs[i], err = smolvm.ParsePortSpec(text); err != nil {
			return nil, err
		}
	}
	return specs, nil
}

// portOptions are the library's options for ports that are put on localhost.
func portOptions(strict bool, transport string) []smolvm.PortOption {
	var opts []smolvm.PortOption
	if strict {
		opts = append(opts, smolvm.Strict())
	}
	if transport != "" {
		opts = append(opts, smolvm.Transport(smolvm.TransportKind(transport)))
	}
	return opts
}

// expose exposes ports of a VM and says where.
func (f exposeFlags) expose(ctx context.Context, g *globals, vm *smolvm.VM, specs []smolvm.PortSpec, out io.Writer) error {
	forwards, err := vm.ExposeAll(ctx, specs, portOptions(f.strict, f.transport)...)
	if err != nil {
		return interrupted(ctx, err, "either all of the ports are exposed or none; see: smolvm ports %s", vm.Name())
	}
	if !g.json {
		if err := printExposed(out, forwards, g.verbose); err != nil {
			return err
		}
	}
	var late error
	if f.wait > 0 {
		late = f.waitForServers(ctx, g, vm, forwards)
	}
	if g.json {
		if err := printJSON(out, withVM(vm.Name(), refresh(vm, forwards))); err != nil {
			return err
		}
	}
	return late
}

// printExposed says where ports are. What scripts have no use for goes where only people see it.
func printExposed(out io.Writer, forwards []smolvm.Forward, verbose bool) error {
	terminal := isTerminal(out)
	for _, f := range forwards {
		line := localAddress(f.Pair)
		if terminal {
			line = describeForward(f)
		} else if verbose {
			fmt.Fprintln(os.Stderr, describeForward(f))
		}
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	return nil
}

// waitForServers waits until something listens on all of the guest's ports.
func (f exposeFlags) waitForServers(ctx context.Context, g *globals, vm *smolvm.VM, forwards []smolvm.Forward) error {
	waiting, cancel := context.WithTimeout(ctx, f.wait)
	defer cancel()
	g.progress().say("waiting for VM " + vm.Name() + " to listen")
	defer g.progress().clear()
	errs := make([]error, len(forwards))
	var waits sync.WaitGroup
	for i, fw := range forwards {
		waits.Go(func() {
			err := vm.WaitPort(waiting, fw.GuestPort, smolvm.Over(fw.Protocol))
			if errors.Is(err, smolvm.ErrTimeout) {
				err = fmt.Errorf("nothing in VM %s listens on port %s after %s; it stays exposed on %s",
					vm.Name(), guestPort(fw), f.wait, localAddress(fw.Pair))
			}
			errs[i] = interrupted(ctx, err, "port %s stays exposed on %s", guestPort(fw), localAddress(fw.Pair))
		})
	}
	waits.Wait()
	return together(errs)
}

// together is the failures among the outcomes of several things, or nil.
func together(outcomes []error) error {
	var failed failures
	for _, err := range outcomes {
		if err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return failed
}

// refresh returns what has become of forwards.
func refresh(vm *smolvm.VM, forwards []smolvm.Forward) []smolvm.Forward {
	now := vm.Forwards()
	fresh := slices.Clone(forwards)
	for i, f := range forwards {
		if at := slices.IndexFunc(now, func(n smolvm.Forward) bool { return n.Pair == f.Pair }); at >= 0 {
			fresh[i] = now[at]
		}
	}
	return fresh
}
