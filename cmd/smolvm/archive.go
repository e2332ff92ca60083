package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newSaveCommand(g *globals) *cobra.Command {
	var output, format string
	cmd := &cobra.Command{
		Use:   "save [flags] IMAGE",
		Short: "Write an image to an archive",
		Long: `Write an image to an archive, to standard output or a file: as an archive of an OCI
image layout, which podman, skopeo and others read, or as docker load reads it. smolvm
load reads both.

It is a container image of one layer then, with all files but the kernel's modules, and
with what the image says of its commands. The same image makes the same archive.`,
		Example: `  smolvm save -o web.tar web
  smolvm save --format docker web | docker load
  smolvm save web | gzip >web.tar.gz`,
		Args:              argsOfUse,
		ValidArgsFunction: g.completeImages(1),
	}
	flags := cmd.Flags()
	flags.StringVarP(&output, "output", "o", "", "write to a `file`")
	flags.StringVar(&format, "format", string(smolvm.SaveOCI), "`oci` or docker")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		if output == "" && isTerminal(cmd.OutOrStdout()) {
			return misuse(cmd, "an archive is nothing for a terminal: use -o FILE, or a pipe")
		}
		opts, done := g.options()
		defer done()
		err := writeTo(output, cmd.OutOrStdout(), func(w io.Writer) error {
			return smolvm.SaveImage(ctx, args[0], w, smolvm.SaveFormat(format), opts...)
		})
		done()
		if err != nil && output != "" {
			return interrupted(ctx, err, "%s was not written", output)
		}
		return interrupted(ctx, err, "what was written is not whole")
	}
	return cmd
}

// writeTo has something written to a file, which is there when all of it is, or, if there is no path,
// to a stream. What is no regular file is written to as it is.
func writeTo(path string, stream io.Writer, write func(io.Writer) error) error {
	if path == "" {
		return write(stream)
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		file, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(file), file.Close())
	}
	file, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(0o666), renameio.WithExistingPermissions())
	if err != nil {
		return err
	}
	if err := write(file); err != nil {
		return errors.Join(err, file.Cleanup())
	}
	return file.CloseAtomicallyReplace()
}

func newLoadCommand(g *globals) *cobra.Command {
	var input string
	cmd := &cobra.Command{
		Use:   "load [flags]",
		Short: "Make images of those in an archive",
		Long: `Make images of those in an archive, from standard input or a file, under the names that
they have in it: what smolvm save, docker save or podman save wrote, which its contents
tell. It may be compressed by gzip or zstd.

If there is an image of a name already, the name means the new one from then on. VMs that
were made on the former one keep it.`,
		Example: `  smolvm load -i web.tar
  docker save web db | smolvm load
  ssh host smolvm save web | smolvm load`,
		Args: argsOfUse,
	}
	cmd.Flags().StringVarP(&input, "input", "i", "", "read a `file`")
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		archive := cmd.InOrStdin()
		if input == "" && isTerminal(archive) {
			return misuse(cmd, "there is no archive: use -i FILE, or a pipe")
		}
		if input != "" {
			file, err := os.Open(input)
			if err != nil {
				return fmt.Errorf("read archive: %w", err)
			}
			defer file.Close()
			archive = file
		}
		opts, done := g.options()
		defer done()
		images, err := smolvm.LoadImages(ctx, archive, opts...)
		done()
		err = interrupted(ctx, err, "%d images were made", len(images))
		if *asJSON {
			return also(err, printJSON(cmd.OutOrStdout(), images))
		}
		for _, image := range images {
			err = also(err, printImage(cmd, image, false))
		}
		return err
	}
	return cmd
}

// pushed is what came of a push, in the output.
type pushed struct {
	Image  string `json:"image"`
	Digest string `json:"digest"`
}

func newPushCommand(g *globals) *cobra.Command {
	var f imageFlags
	cmd := &cobra.Command{
		Use:   "push [flags] IMAGE [docker://REGISTRY/NAME:TAG]",
		Short: "Put an image into a registry",
		Long: `Put an image into a registry, and print its digest there: under the name that it has,
or another. Logins are those of docker login or podman login.

It is a container image of one layer then, with all files but the kernel's modules, and
with what the image says of its commands. What the registry has already is not sent.`,
		Example: `  smolvm push ghcr.io/team/web:1
  smolvm push web docker://localhost:5000/web:1`,
		Args:              argsOfUse,
		ValidArgsFunction: g.completeImages(1),
	}
	f.register(cmd)
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		opts, done := g.options()
		defer done()
		digest, err := smolvm.PushImage(ctx, args[0], append(args, "")[1], append(opts, f.options()...)...)
		done()
		switch {
		case err != nil:
			return interrupted(ctx, err, "the image was not pushed")
		case *asJSON:
			return printJSON(cmd.OutOrStdout(), pushed{args[0], digest})
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), digest)
		return err
	}
	return cmd
}
