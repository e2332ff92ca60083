package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"os"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newPortsCommand(g *globals) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "ports [flags] [VM]",
		Short: "List the ports that VMs have on localhost",
		Long: `List the ports that a VM, or all VMs that run, have on localhost: what the kernel and
the guests do at this moment.

TRANSPORT is what carries the connections, and HEALTH is active if something in the
guest listens, waiting if nothing does yet, or down; REASON says why. OPEN and
TOTAL count connections.

With --watch it goes on until Ctrl-C, or until the VM that was named is removed. At
a terminal the table is kept up to date. Otherwise each event is a line of its own:
that a port is exposed, changed or unexposed. With --json each is an object with
event, vm, host_port, guest_port, proto, transport, reason and health.`,
		Example: `  smolvm ports
  smolvm ports web --json | jq '.[].host_port'
  smolvm ports --watch
  smolvm ports -w --json web | jq --unbuffered -r 'select(.health == "active").host_port'`,
		Args:              argsOfUse,
		ValidArgsFunction: g.completeVMs(1, isRunning),
	}
	jsonFlag(cmd)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on with what changes, until Ctrl-C")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		source := &portSource{globals: g}
		if len(args) > 0 {
			source.only = args[0]
		}
		if watch {
			return endless(cmd.Context(), source.watch(cmd.Context(), cmd.OutOrStdout()))
		}
		return source.print(cmd.Context(), cmd.OutOrStdout())
	}
	return cmd
}

// portSource tells about the ports of all VMs, or of one only.
type portSource struct {
	*globals
	only string
}

// infos tells about the VMs. That the only one is not there is an error.
func (s *portSource) infos(ctx context.Context) ([]smolvm.Info, error) {
	if s.only == "" {
		return s.list(ctx)
	}
	var infos []smolvm.Info
	err := s.with(ctx, s.only, func(vm *smolvm.VM) error {
		info, err := vm.Info(ctx)
		infos = append(infos, info)
		return err
	})
	return infos, err
}

// follow yields what happens to the forwards of a VM that runs.
func (s *portSource) follow(ctx context.Context, name string) (iter.Seq[smolvm.ForwardEvent], error) {
	vm, err := s.open(ctx, name)
	if err != nil {
		return nil, err
	}
	events, err := vm.ForwardEvents(ctx)
	if err != nil {
		_ = vm.Close() // nothing was done with it
		return nil, err
	}
	return func(yield func(smolvm.ForwardEvent) bool) {
		events(yield)
		_ = vm.Close() // it was only listened to
	}, nil
}

// print prints what there is.
func (s *portSource) print(ctx context.Context, out io.Writer) error {
	infos, err := s.infos(ctx)
	if err != nil {
		return err
	}
	for _, vm := range infos {
		if vm.Err != nil {
			fmt.Fprintf(os.Stderr, "smolvm: %s\n", plain(fmt.Sprintf("%s: %v", vm.Name, vm.Err)))
		}
	}
	if s.json {
		return printJSON(out, forwardsOf(infos))
	}
	return printForwards(out, forwardsOf(infos))
}

// watch goes on to tell what happens.
func (s *portSource) watch(ctx context.Context, out io.Writer) error {
	w := newPortWatch(s.infos, s.follow)
	w.named = s.only != ""
	tty, ok := out.(*os.File)
	switch {
	case s.json:
		w.event = func(e portEvent) error { return printJSON(out, e) }
	case !ok || !isTerminal(tty):
		w.event = func(e portEvent) error {
			_, err := fmt.Fprintln(out, plain(e.String()))
			return err
		}
	default:
		screen := openScreen(tty)
		defer screen.close()
		w.state = func(infos []smolvm.Info) error {
			var table bytes.Buffer
			if err := printForwards(&table, forwardsOf(infos)); err != nil {
				return err
			}
			return screen.draw(table.String())
		}
	}
	return w.run(ctx)
}

// forwardsOf lists the forwards of all VMs.
func forwardsOf(infos []smolvm.Info) []vmForward {
	forwards := []vmForward{}
	for _, vm := range infos {
		forwards = append(forwards, withVM(vm.Name, vm.Forwards)...)
	}
	return forwards
}
