package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/smolvm/smolvm/internal/image/rootfs"
)

// kernelSource has the kernel of an image that is made of what somebody has.
type kernelSource interface {
	// tools are the programs that install needs.
	tools() []tool
	// install puts the kernel and the modules for booting into the image, and those for programs into
	// the tree. It returns the kernel's version, and the files of the former in load order.
	install(ctx context.Context, job *Job, tools map[string]string, tree *rootfs.Tree) (version string, boot []string, err error)
}

var (
	_ kernelSource = (*imageKernel)(nil)
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
func (c kernelChoice) install(ctx context.Context, job *Job, tools map[string]string, tree *rootfs.Tree) (string, []string, error) {
	l, err := c.linux(ctx, job, tools["dpkg-deb"])
	if err != nil {
		return "", nil, err
	}
	boot, err := l.install(job)
	if err != nil {
		return "", nil, err
	}
	modules, err := l.guestModules(ctx, job, tools["depmod"])
	if err != nil {
		return "", nil, err
	}
	return l.version, boot, putModules(ctx, tree, modules, l.version)
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

// imageKernel is the kernel of another image, which must stay until it is installed.
type imageKernel struct{ image *Image }

// tools implements kernelSource.
func (k *imageKernel) tools() []tool { return []tool{{"debugfs", "e2fsprogs"}} }

// install implements kernelSource.
func (k *imageKernel) install(ctx context.Context, job *Job, tools map[string]string, tree *rootfs.Tree) (string, []string, error) {
	if err := share(k.image.Kernel, filepath.Join(job.Dir, kernelFile)); err != nil {
		return "", nil, fmt.Errorf("copy kernel: %w", err)
	}
	if err := os.Mkdir(filepath.Join(job.Dir, modulesDir), 0o755); err != nil {
		return "", nil, fmt.Errorf("copy kernel: %w", err)
	}
	var files []string
	for _, module := range k.image.Modules {
		file := filepath.Base(module)
		if err := share(module, filepath.Join(job.Dir, modulesDir, file)); err != nil {
			return "", nil, fmt.Errorf("copy kernel: %w", err)
		}
		files = append(files, file)
	}
	// The other modules are in the filesystem of the image that has the kernel, which nobody
	// needs to mount. debugfs ends well whatever happened.
	version := k.image.KernelVersion
	if _, err := job.run(ctx, command{name: tools["debugfs"], args: []string{
		"-R", "rdump " + path.Join(guestModulesDir, version) + " .", k.image.RootFS,
	}}); err != nil {
		return "", nil, err
	}
	from := filepath.Join(job.Dir, version)
	if !isThere(filepath.Join(from, "modules.dep")) {
		return "", nil, fmt.Errorf("copy kernel modules from image %q: it has none", k.image.Name)
	}
	return version, files, putModules(ctx, tree, from, version)
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
