package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newCommitCommand(g *globals) *cobra.Command {
	var commit smolvm.CommitOptions
	cmd := &cobra.Command{
		Use:   "commit [flags] VM IMAGE",
		Short: "Make an image of a VM's disk",
		Long: `Make an image of a VM's disk as it is now. A VM that runs writes out what it has first,
and goes on all the time.

In the image are all files but those that make the VM this one: its host name and
machine ID, name servers, SSH host keys, and what is in /tmp and /run. Kernel, command,
environment and the rest are those of the VM's image, unless --change says otherwise.

If there is an image of that name already, the name means the new one from then on.
VMs that were made on the former one keep it.`,
		Example: `  smolvm commit web web-ready
  smolvm commit --change 'CMD ["nginx", "-g", "daemon off;"]' --change 'EXPOSE 80' web nginx
  smolvm commit -m "with the data of Monday" db ghcr.io/team/db:monday`,
		Args: argsOfUse,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return g.completeVMs(1, nil)(cmd, args, begun)
			}
			return g.completeImages(2)(cmd, args, begun)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&commit.Changes, "change", "c", nil,
		"`line` as in a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER or WORKDIR (may be repeated)")
	flags.StringVarP(&commit.Message, "message", "m", "", "`text` for people, which smolvm inspect shows")
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		opts, done := g.options()
		defer done()
		vm, err := smolvm.Open(ctx, args[0], opts...)
		if err != nil {
			return err
		}
		image, err := vm.Commit(ctx, args[1], commit)
		err = errors.Join(err, vm.Close())
		done()
		if err != nil {
			return interrupted(ctx, &vmError{args[0], err}, "no image was made")
		}
		return printImage(cmd, image, *asJSON)
	}
	return cmd
}
