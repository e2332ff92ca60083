package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/smolvm/smolvm/internal/image/rootfs"
)

// kernelSource has the kernel of an image that is made of what somebody has.
type kernelSource interface {
	// tools are the programs that install needs.
	tools() []tool
	// install puts the kernel and the modules for booting into the image, and those for programs into
	// the tree.
	install(ctx context.Context, job *Job, tools map[string]string, tree *rootfs.Tree) (installed, error)
}

// installed is a kernel that was put into an image.
type installed struct {
	version string
	pkg     string   // the package that has it, if one has
	boot    []string // files of the modules for booting, in load order
}

var (
	_ kernelSource = (*usualKernel)(nil)
	_ kernelSource = (*ownKernel)(nil)
	_ kernelSource = kernelChoice{}
)

// putModules puts a directory of modules into a tree.
func putModules(ctx context.Context, tree *rootfs.Tree, dir, version string) error {
	if err := tree.AddDir(ctx, dir, path.Join("lib/modules", version)); err != nil {
		return fmt.Errorf("add kernel modules: %w", err)
	}
	return nil
}

// tools implements kernelSource.
func (c kernelChoice) tools() []tool {
	tools := []tool{{"depmod", "kmod"}}
	if c.Package != "" {
		tools = append(tools, tool{"apt-get", "apt"}, tool{"apt-cache", "apt"}, tool{"dpkg-deb", "dpkg"})
	}
	return tools
}

// install implements kernelSource.
func (c kernelChoice) install(ctx context.Context, job *Job, tools map[string]string, tree *rootfs.Tree) (installed, error) {
	l, err := c.linux(ctx, job, tools["dpkg-deb"])
	if err != nil {
		return installed{}, err
	}
	boot, err := l.install(job)
	if err != nil {
		return installed{}, err
	}
	modules, err := l.guestModules(ctx, job, tools["depmod"])
	if err != nil {
		return installed{}, err
	}
	return installed{l.version, l.pkg, boot}, putModules(ctx, tree, modules, l.version)
}

// linux returns the kernel.
func (c kernelChoice) linux(ctx context.Context, job *Job, dpkgDeb string) (*linux, error) {
	if c.Path != "" {
		return c.open(ctx)
	}
	debs, err := c.download(ctx, job)
	if err != nil {
		return nil, err
	}
	return job.linuxOfPackages(ctx, dpkgDeb, debs)
}

func isThere(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// share gives a file that never changes a second name, or copies it where that cannot be: on
// another filesystem, or of another user.
func share(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
