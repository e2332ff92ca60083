package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// vmFlags are the flags that say what a VM is to be, of run and of create.
type vmFlags struct {
	name    string
	image   string
	pull    string
	images  imageFlags
	memory  int
	cpus    int
	disk    int
	disks   []string
	env     []string
	network string
	user    string
	workdir string
	volumes []string

	// readOnly is for volumes that do not say it.
	readOnly bool
}

func (f *vmFlags) register(g *globals, cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "name of the VM (default: made up)")
	settingVar(cmd, flags, &f.image, "image")
	settingVar(cmd, flags, &f.pull, "pull")
	f.images.register(cmd)
	settingVar(cmd, flags, &f.memory, "memory")
	settingVar(cmd, flags, &f.cpus, "cpus")
	settingVar(cmd, flags, &f.disk, "disk")
	settingVar(cmd, flags, &f.network, "network")
	flags.StringArrayVar(&f.disks, "attach", nil, "give the VM another disk, /dev/vdb and so on: `FILE[:ro]`, qcow2 if it is called so, else raw (may be repeated)")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "set a variable for all commands in the VM: `NAME=VALUE`, or NAME to pass the host's on (may be repeated)")
	flags.StringVarP(&f.user, "user", "u", "", "run commands in the VM as this user: name or number, `USER[:GROUP]` (default: the image's, or else root)")
	flags.StringVarP(&f.workdir, "workdir", "w", "", "run commands in this `directory` of the VM (default: the image's, or else the user's home)")
	flags.StringArrayVarP(&f.volumes, "volume", "v", nil, "share a folder of this host: `HOST:GUEST[:ro|rw]` (may be repeated)")
	settingVar(cmd, flags, &f.readOnly, "volumes_read_only")
	// These fail only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("volume", cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs))
	_ = cmd.RegisterFlagCompletionFunc("image", g.completeImages(0))
}

// disks are those that --attach stands for.
func disks(attached []string) []smolvm.Disk {
	all := make([]smolvm.Disk, 0, len(attached))
	for _, text := range attached {
		path, readOnly := strings.CutSuffix(text, ":ro")
		all = append(all, smolvm.Disk{Path: path, ReadOnly: readOnly})
	}
	return all
}

// takeImage takes the image that is an argument, rather than a flag.
func (f *vmFlags) takeImage(cmd *cobra.Command, image string) error {
	if cmd.Flags().Changed("image") {
		return misuse(cmd, "the image is given twice: --image %s and %s", f.image, image)
	}
	f.image = image
	return nil
}

// maxGiB keeps a disk's size countable in bytes. It is more than the library allows.
const maxGiB = 1 << 30

// options are the library's options that the flags stand for.
func (f *vmFlags) options() ([]smolvm.Option, error) {
	env, err := environment(f.env)
	if err != nil {
		return nil, err
	}
	folders, err := parseVolumes(f.volumes, f.readOnly)
	return append(f.images.options(),
		smolvm.Name(f.name), smolvm.Image(f.image), smolvm.PullImage(smolvm.PullPolicy(f.pull)), smolvm.Memory(f.memory), smolvm.CPUs(f.cpus),
		smolvm.DiskSize(min(int64(f.disk), maxGiB)<<30), smolvm.Network(smolvm.NetworkMode(f.network)),
		smolvm.User(f.user), smolvm.WorkingDir(f.workdir), smolvm.Env(env...), smolvm.Disks(disks(f.disks)...), smolvm.Share(folders...),
	), err
}
