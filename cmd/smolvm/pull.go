package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newPullCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "pull [IMAGE]",
		Short: "Make an image ready, so that no start has to wait for it",
		Long: `Make an image ready, so that no start has to wait for it.

The image "debian", the default, is made from the host's own package sources.
An image in root's data directory serves every user of the host.`,
		Example: `  smolvm pull
  sudo smolvm pull debian`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := "debian"
			if len(args) > 0 {
				name = args[0]
			}
			opts, done := g.options()
			img, err := smolvm.Pull(cmd.Context(), name, opts...)
			done()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s, Linux %s, %d MB in %s\n", img.Name, img.ID, img.Kernel, img.Size/1e6, img.Dir)
			return err
		},
	}
}
