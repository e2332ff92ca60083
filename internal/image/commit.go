package image

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/smolvm/smolvm/internal/image/rootfs"
)

// CommitOptions say what an image of a VM's disk is to say of itself. By default that is what the
// image of the VM says.
type CommitOptions struct {
	// Changes are lines as in a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER or
	// WORKDIR, and what follows: 'CMD ["nginx", "-g", "daemon off;"]'.
	Changes []string
	// Message is for people: what the image is for.
	Message string
}

// Disk is a VM's disk that does not change.
type Disk struct {
	VM   string // whose it is
	Path string // qcow2, an overlay on others, all made by this host
	Base *Image // that it was made on; it must stay
}

// CheckCommit tells whether Commit can make an image of that name, with these options. It fails with
// ErrInvalidName or ErrChange.
func CheckCommit(name string, opts CommitOptions) error {
	_, _, err := parseCommit(name, opts)
	return err
}

func parseCommit(name string, opts CommitOptions) (string, changes, error) {
	name, err := ParseName(name)
	if err != nil {
		return "", nil, err
	}
	if err := checkFree(name); err != nil {
		return "", nil, err
	}
	list, err := parseChanges(opts.Changes)
	return name, list, err
}

// Commit makes an image of what is on a VM's disk, but for what makes the VM this one, and makes it
// what the name means. What that meant before is kept, and progress is called as Ensure calls it.
// It fails as CheckCommit does.
func (s *Store) Commit(ctx context.Context, name string, disk Disk, opts CommitOptions, progress func(Progress)) (*Image, error) {
	name, list, err := parseCommit(name, opts)
	if err != nil {
		return nil, err
	}
	return s.buildAs(ctx, name, &committed{disk: disk, changes: list, message: opts.Message}, Job{report: progress})
}

// committed makes an image of a VM's disk.
type committed struct {
	disk    Disk
	changes changes
	message string
}

var _ Source = (*committed)(nil)

const commitStages = 3 // to copy, read and write

// Build implements Source.
func (c *committed) Build(ctx context.Context, job *Job) (Manifest, error) {
	tools, err := findTools(tool{"mke2fs", "e2fsprogs"})
	if err != nil {
		return Manifest{}, err
	}
	d := &disk{}
	defer d.close()
	tree, err := d.openOwn(ctx, job, c.disk.Path, commitStages)
	if err != nil {
		return Manifest{}, fmt.Errorf("read disk of VM %s: %w", c.disk.VM, err)
	}
	if err := forget(ctx, tree); err != nil {
		return Manifest{}, fmt.Errorf("take out what belongs to VM %s: %w", c.disk.VM, err)
	}
	base := c.disk.Base
	config := c.changes.apply(base.Config)
	config.Created = time.Time{} // the image's own is in its record
	if config.WorkingDir != "" {
		if err := makeDirectories(tree, config.WorkingDir); err != nil {
			return Manifest{}, err
		}
	}
	kernel, err := shareOf(job, base)
	if err != nil {
		return Manifest{}, err
	}
	job.Stage(stageWrite, commitStages)
	err = tree.WriteExt4(ctx, filepath.Join(job.Dir, rootFSFile), rootfs.Ext4Options{
		Mke2fs: tools["mke2fs"], Size: roomFor(tree), Label: rootLabel,
	})
	if err != nil {
		return Manifest{}, err
	}
	return Manifest{
		Description:   fmt.Sprintf("%s, Linux %s", cmp.Or(systemOf(ctx, tree), c.disk.VM), kernel.version),
		KernelVersion: kernel.version,
		// No KernelPackage: the guest may have put anything where the modules for programs are.
		Modules: kernel.boot,
		Env:     ownEnv(base),
		Config:  config,
		From:    vmOrigin + c.disk.VM,
		Message: c.message,
	}, nil
}

// vmOrigin is what Image.From begins with if it is a VM.
const vmOrigin = "vm:"
