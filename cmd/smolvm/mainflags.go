package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// mainFlags are the flags that say what runs in a VM and what comes of it, of run and of create.
type mainFlags struct {
	entrypoint string
	replaced   bool // the image's entry point is, by entrypoint
	restart    string
	stopSignal string
	labels     []string
	ports      []string
	publishAll bool
	strict     bool
	transport  string
}

func (f *mainFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.ports, "publish", "p", nil, "put a port of the guest on localhost: `[HOST:]GUEST[/udp]`, also ranges such as 8000-8010:9000-9010 (may be repeated)")
	flags.BoolVarP(&f.publishAll, "publish-all", "P", false, "put all ports on localhost that the image names: on the same port if it is free and at least 1024, else on another one")
	flags.BoolVar(&f.strict, "strict", false, "fail if a host port is busy, rather than take the next free one")
	settingVar(cmd, flags, &f.transport, "transport")
	flags.StringVar(&f.entrypoint, "entrypoint", "", "run this `program` in place of the image's entry point; an empty one runs what is behind -- as it is")
	flags.StringVar(&f.restart, "restart", "no", "`policy` to start the main process again when it has ended, and the VM when it has failed: no, on-failure[:N], always or unless-stopped")
	flags.StringVar(&f.stopSignal, "stop-signal", "", "ask the command to end by this `signal` when the VM is stopped (default: the image's, or else SIGTERM)")
	flags.StringArrayVarP(&f.labels, "label", "l", nil, "give the VM a label: `NAME[=VALUE]` (may be repeated)")
	policies := []string{string(smolvm.RestartNo), string(smolvm.RestartOnFailure), string(smolvm.RestartAlways), string(smolvm.RestartUnlessStopped)}
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("restart", cobra.FixedCompletions(policies, cobra.ShellCompDirectiveNoFileComp))
}

// options are the library's options that the flags stand for, but for the command.
func (f *mainFlags) options() ([]smolvm.Option, error) {
	specs, err := parsePorts(f.ports)
	if err != nil {
		return nil, err
	}
	labels := make(map[string]string)
	for _, text := range f.labels {
		name, value, _ := strings.Cut(text, "=")
		labels[name] = value
	}
	opts := []smolvm.Option{
		smolvm.Restart(smolvm.RestartPolicy(f.restart)), smolvm.StopSignal(f.stopSignal), smolvm.Labels(labels),
		smolvm.Publish(specs, portOptions(f.strict, f.transport)...),
	}
	if f.publishAll {
		opts = append(opts, smolvm.PublishAll())
	}
	return opts, nil
}

// command is what is to run in a VM: the image's own command, of which what is given takes the
// place, but for its entry point. It is empty if there is none.
func (f *mainFlags) command(image smolvm.Info, given []string) []string {
	if f.replaced {
		return f.explicit(given)
	}
	return smolvm.ComposeCommand(image.Entrypoint, image.Cmd, given)
}

// explicit is the command with an entry point that takes the place of the image's.
func (f *mainFlags) explicit(given []string) []string {
	if f.entrypoint == "" {
		return given
	}
	return slices.Concat([]string{f.entrypoint}, given)
}

// mainProcess makes what command returns the VM's main process.
func (f *mainFlags) mainProcess(given []string) []smolvm.Option {
	if !f.replaced {
		return []smolvm.Option{smolvm.ImageCommand(given...)}
	}
	if command := f.explicit(given); len(command) > 0 {
		return []smolvm.Option{smolvm.Main(command[0], command[1:]...)}
	}
	return nil
}

// take takes the image and the command out of a verb's arguments.
func (f *mainFlags) take(cmd *cobra.Command, vm *vmFlags, args []string) (command []string, err error) {
	f.replaced = cmd.Flags().Changed("entrypoint")
	if dash := cmd.ArgsLenAtDash(); dash == 0 || len(args) == 0 {
		return args, nil
	}
	return args[1:], vm.takeImage(cmd, args[0])
}

// checkImage finds arguments that are no image, nor behind --. It returns how many are before that.
func checkImage(cmd *cobra.Command, args []string) (before int, err error) {
	before = len(args)
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		before = dash
	}
	if before > 1 {
		return before, fmt.Errorf("%s takes one image; put the command behind --, as in: smolvm %[1]s %s -- %s", cmd.Name(), args[0], args[1])
	}
	return before, nil
}
