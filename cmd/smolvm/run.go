package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// runFlags are the flags of smolvm run.
type runFlags struct {
	ports       []string
	strict      bool
	name        string
	image       string
	memory      int
	cpus        int
	disk        int
	env         []string
	network     string
	transport   string
	accelerator string
	remove      bool
	interactive bool
}

func newRunCommand(g *globals) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] [IMAGE] [-- COMMAND [ARG...]]",
		Short: "Start a VM, run a command in it, and remove it",
		Long: `Start a VM, run a command in it, and remove it when the command ends.

The command's output is passed on, and so is its exit code. Without a command
the VM runs until Ctrl-C. Ctrl-C ends the command, stops the VM and removes it.

Exit codes: the command's own; 125 if smolvm failed, 126 if the command cannot be
run, 127 if there is no such command; 128 plus the signal's number if a signal
ended smolvm or the command.`,
		Example: `  smolvm run -- uname -a
  smolvm run -p 8000 -- python3 -m http.server 8000
  smolvm run -p 8080:80 -p 5432 -p 5353:53/udp --memory 1024
  echo 'print(6 * 7)' | smolvm run -i -- python3 -`,
		Args: func(cmd *cobra.Command, args []string) error {
			before := len(args)
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				before = dash
			}
			if before > 1 {
				return fmt.Errorf("run takes one image; put the command behind --, as in: smolvm run %s -- %s", args[0], args[1])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			command := args
			if dash := cmd.ArgsLenAtDash(); dash != 0 && len(args) > 0 {
				if cmd.Flags().Changed("image") {
					return fmt.Errorf("the image is given twice: --image %s and %s", f.image, args[0])
				}
				f.image, command = args[0], args[1:]
			}
			return run(cmd.Context(), g, f, command)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.ports, "publish", "p", nil, "put a port of the guest on localhost: `[HOST:]GUEST[/udp]`, also ranges such as 8000-8010:9000-9010 (may be repeated)")
	flags.BoolVar(&f.strict, "strict", false, "fail if a host port is busy, rather than take the next free one")
	flags.StringVar(&f.name, "name", "", "name of the VM (default: made up)")
	flags.StringVar(&f.image, "image", "debian", "image of the VM")
	flags.IntVar(&f.memory, "memory", 512, "memory in `MiB`")
	flags.IntVar(&f.cpus, "cpus", 1, "number of processors")
	flags.IntVar(&f.disk, "disk", 0, "size of the disk in `GiB` (default: the image's)")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "set a variable for the command: `NAME=VALUE`, or NAME to pass the host's on (may be repeated)")
	flags.StringVar(&f.network, "network", string(smolvm.NetworkAuto), "how the VM reaches the network: auto, nat, user or none")
	flags.StringVar(&f.transport, "transport", "", "force a transport for ports: nftables or ssh_tunnel")
	flags.StringVar(&f.accelerator, "accel", "", "force an accelerator: kvm or tcg")
	flags.BoolVar(&f.remove, "rm", true, "remove the VM at the end; --rm=false keeps it, stopped")
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "pass standard input to the command")
	for flag, values := range map[string][]cobra.Completion{
		"network":   {"auto", "nat", "user", "none"},
		"transport": {"nftables", "ssh_tunnel"},
		"accel":     {"kvm", "tcg"},
	} {
		// It fails only for a flag that does not exist.
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	return cmd
}

// options are the library's options that the flags stand for.
func (f runFlags) options() []smolvm.Option {
	opts := []smolvm.Option{
		smolvm.Name(f.name), smolvm.Image(f.image), smolvm.Memory(f.memory), smolvm.CPUs(f.cpus),
		smolvm.DiskSize(int64(f.disk) << 30), smolvm.Network(smolvm.NetworkMode(f.network)),
		smolvm.Accelerate(smolvm.Accelerator(f.accelerator)),
	}
	for _, e := range f.env {
		if value, ok := os.LookupEnv(e); ok {
			e += "=" + value
		}
		opts = append(opts, smolvm.Env(e))
	}
	if !f.remove {
		opts = append(opts, smolvm.Keep())
	}
	return opts
}

func run(ctx context.Context, g *globals, f runFlags, command []string) (err error) {
	specs := make([]smolvm.PortSpec, len(f.ports))
	for i, p := range f.ports {
		if specs[i], err = smolvm.ParsePortSpec(p); err != nil {
			return err
		}
	}
	opts, done := g.options()
	vm, err := smolvm.Launch(ctx, append(opts, f.options()...)...)
	done()
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := vm.Close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("remove VM %s: %w", vm.Name(), closeErr))
		}
	}()
	if err := publish(ctx, vm, specs, f); err != nil {
		return err
	}
	if len(command) == 0 {
		fmt.Fprintf(os.Stderr, "%s is running; Ctrl-C stops it\n", vm.Name())
		<-ctx.Done()
		return ctx.Err()
	}
	cmd := vm.Command(ctx, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if f.interactive {
		cmd.Stdin = os.Stdin
	}
	return commandStatus(cmd.Run())
}

// publish exposes ports and says where.
func publish(ctx context.Context, vm *smolvm.VM, specs []smolvm.PortSpec, f runFlags) error {
	var opts []smolvm.PortOption
	if f.strict {
		opts = append(opts, smolvm.Strict())
	}
	if f.transport != "" {
		opts = append(opts, smolvm.Transport(smolvm.TransportKind(f.transport)))
	}
	forwards, err := vm.ExposeAll(ctx, specs, opts...)
	if err != nil {
		return err
	}
	for _, fw := range forwards {
		guest := strconv.Itoa(fw.GuestPort)
		if fw.Protocol == smolvm.UDP {
			guest += "/udp"
		}
		fmt.Fprintf(os.Stderr, "127.0.0.1:%d -> %s  transport=%s\n", fw.HostPort, guest, fw.Transport)
	}
	return nil
}

// commandStatus turns how the guest's command ended into smolvm's own exit code.
func commandStatus(err error) error {
	var exit *smolvm.ExitError
	var start *smolvm.StartError
	switch {
	case errors.As(err, &exit):
		return exitStatus(exit.ExitCode())
	case errors.As(err, &start):
		fmt.Fprintln(os.Stderr, "smolvm:", err)
		if start.NotFound {
			return exitStatus(exitNotFound)
		}
		return exitStatus(exitCannotRun)
	}
	return err
}
