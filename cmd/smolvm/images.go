package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newImagesCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "images",
		Short: "List the images that VMs can be made on",
		Long: `List the images that VMs can be made on. One that a newer of the same name has
replaced is listed as long as VMs are made on it. Those of root's data directory
serve every user of the host.`,
		Example: "  smolvm images\n  smolvm images --json | jq -r '.[] | select(.vms == []) | .name'",
		Args:    argsOfUse,
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		opts, done := g.options()
		images, err := smolvm.Images(cmd.Context(), opts...)
		done()
		if err != nil {
			return err
		}
		if *asJSON {
			if images == nil {
				images = []smolvm.ImageInfo{}
			}
			return printJSON(cmd.OutOrStdout(), images)
		}
		return imageTable(newTable(cmd.OutOrStdout(), "NAME", "ID", "SIZE", "AGE", "KERNEL", "VMS"), images, time.Now()).flush()
	}
	return cmd
}

// shortID is as many digits of an ID as tell one image from another.
const shortID = 12

// imageTable fills a table with images.
func imageTable(t *table, images []smolvm.ImageInfo, now time.Time) *table {
	for _, image := range images {
		name := image.Name
		switch {
		case !image.Current:
			name += " (replaced)"
		case image.Shared:
			name += " (shared)"
		}
		t.row(name, image.ID[:min(shortID, len(image.ID))], size(image.Size), age(now.Sub(image.Created)), image.Kernel,
			cmp.Or(strings.Join(image.VMs, ", "), "-"))
	}
	return t
}

// imageFlags are those of verbs that fetch images.
type imageFlags struct{ insecure bool }

func (f *imageFlags) register(cmd *cobra.Command) {
	settingVar(cmd, cmd.Flags(), &f.insecure, "insecure")
}

// options are the library's options that the flags stand for.
func (f *imageFlags) options() []smolvm.Option {
	if f.insecure {
		return []smolvm.Option{smolvm.InsecureRegistries()}
	}
	return nil
}

func newPullCommand(g *globals) *cobra.Command {
	var f imageFlags
	cmd := &cobra.Command{
		Use:   "pull [IMAGE]",
		Short: "Make an image ready, so that no start has to wait for it",
		Long: `Make an image ready, so that no start has to wait for it.

The image "debian", the default, is made from the host's own package sources. Others are
got from a registry, by the names that they have in Docker, with the logins and mirrors
that Docker and Podman are configured with. If the name means another image there by
now, that is got; VMs that were made on the former one keep it.

An image in root's data directory serves every user of the host.`,
		Example:           "  smolvm pull\n  smolvm pull python:3.13-alpine\n  smolvm pull localhost:5000/team/app:2\n  sudo smolvm pull debian",
		Args:              argsOfUse,
		ValidArgsFunction: g.completeImages(1),
	}
	f.register(cmd)
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		opts, done := g.options()
		image, err := smolvm.Pull(cmd.Context(), append(args, "debian")[0], append(opts, f.options()...)...)
		done()
		if err != nil {
			return interrupted(cmd.Context(), err, "the image was not made")
		}
		return printImage(cmd, image, *asJSON)
	}
	return cmd
}

func newBuildCommand(g *globals) *cobra.Command {
	var build smolvm.BuildOptions
	var f imageFlags
	cmd := &cobra.Command{
		Use:   "build NAME",
		Short: "Make an image of packages, a container image, a root filesystem or a disk",
		Long: `Make an image with packages of your choice, from the host's own package sources, or
of a root filesystem that you have: a tar archive, plain or compressed by gzip, zstd or
xz, a directory, or a disk, raw or qcow2; or of a container image: in a registry, in what
docker save wrote, or in an OCI layout; or of an image that is here. Of any distribution:
the guest needs nothing of it. The kernel is that of the image "debian" or, if there is
none, of a package of the host's own sources, unless --kernel says otherwise.

If there is an image of that name already, the name means the new one from then on.
VMs that were made on the former one keep it.`,
		Example: `  smolvm build web --package nginx --package sqlite3
  smolvm run web -- nginx -v
  smolvm build alpine --from tar:alpine-minirootfs.tar.gz
  smolvm build mine --from dir:./rootfs
  smolvm build cloud --from disk:debian-12-genericcloud-amd64.qcow2
  docker save web >web.tar && smolvm build web --from docker-archive:web.tar
  smolvm build app --from oci:./layout:latest
  smolvm build py --from docker://python:3.13-alpine
  smolvm build lab --kernel linux-image-amd64
  smolvm build mine --from dir:./rootfs --kernel ./arch/x86/boot/bzImage --modules ./modules`,
		Args: argsOfUse,
	}
	cmd.Flags().StringArrayVar(&build.Packages, "package", nil, "Debian `package` to install beside the usual ones (may be repeated)")
	cmd.Flags().StringVar(&build.From, "from", "", "make it of what is there: `NAME` of an image, tar:FILE, dir:PATH, disk:FILE, docker://NAME, docker-archive:FILE[:NAME:TAG], oci-archive:FILE[:TAG] or oci:PATH[:TAG]")
	cmd.Flags().StringVar(&build.Kernel, "kernel", "", "its kernel, in place of the usual one: a `file` like ./vmlinuz, or a package like linux-image-amd64")
	cmd.Flags().StringVar(&build.KernelModules, "modules", "", "`directory` with the modules of a kernel that is a file (default: /lib/modules/VERSION)")
	f.register(cmd)
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		opts, done := g.options()
		image, err := smolvm.BuildImage(cmd.Context(), args[0], build, append(opts, f.options()...)...)
		done()
		if err != nil {
			return interrupted(cmd.Context(), err, "the image was not made")
		}
		return printImage(cmd, image, *asJSON)
	}
	return cmd
}

// printImage tells about an image that is ready.
func printImage(cmd *cobra.Command, image smolvm.ImageInfo, asJSON bool) error {
	if asJSON {
		return printJSON(cmd.OutOrStdout(), image)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s, Linux %s, %s in %s\n", image.Name, image.ID, image.Kernel, size(image.Size), image.Dir)
	return err
}

func newRemoveImageCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rmi IMAGE...",
		Short: "Remove images",
		Long: `Remove images that no VM is made on. An image that can be made again is, when it is
next used.`,
		Example:           "  smolvm rmi web\n  smolvm rmi web db",
		Args:              argsOfUse,
		ValidArgsFunction: g.completeImages(0),
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		opts, done := g.options()
		defer done()
		results := []batched{}
		var outcomes []error
		for _, name := range distinct(names) {
			result := batched{Name: name}
			err := smolvm.RemoveImage(cmd.Context(), name, opts...)
			switch {
			case err != nil:
				result.Error = plain(err.Error())
			case !*asJSON:
				_, err = fmt.Fprintln(cmd.OutOrStdout(), name)
			}
			results, outcomes = append(results, result), append(outcomes, err)
		}
		var err error
		if *asJSON {
			err = printJSON(cmd.OutOrStdout(), results)
		}
		return also(together(outcomes), err)
	}
	return cmd
}
