package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/smolvm/smolvm/internal/image/apt"
	"github.com/smolvm/smolvm/internal/image/rootfs"
)

// imported makes an image of a root filesystem, or a container image, that somebody has. Its
// kernel is another image's.
type imported struct {
	origin origin
	base   *Image // has the kernel; must stay until Build has returned
}

var _ Source = (*imported)(nil)

// The stages of an import, in their order.
const (
	stageRead       = "read files"
	stageCopyKernel = "copy kernel"
	importStages    = 3 // with stageWrite
)

// Build implements Source.
func (i *imported) Build(ctx context.Context, job *Job) (Manifest, error) {
	tools, err := findTools(tool{"mke2fs", "e2fsprogs"}, tool{"debugfs", "e2fsprogs"})
	if err != nil {
		return Manifest{}, err
	}
	job.Stage(stageRead, importStages)
	tree, about, err := i.read(ctx)
	if err != nil {
		return Manifest{}, i.blame(err)
	}
	job.Stage(stageCopyKernel, importStages)
	modules, err := i.takeKernel(ctx, job, tools["debugfs"], tree)
	if err != nil {
		return Manifest{}, err
	}
	job.Stage(stageWrite, importStages)
	err = tree.WriteExt4(ctx, filepath.Join(job.Dir, rootFSFile), rootfs.Ext4Options{
		Mke2fs: tools["mke2fs"], Size: roomFor(tree), Label: rootLabel,
	})
	if err != nil {
		return Manifest{}, i.blame(err)
	}
	return Manifest{
		Description:   fmt.Sprintf("%s, Linux %s", i.describe(ctx, tree), i.base.KernelVersion),
		KernelVersion: i.base.KernelVersion,
		Modules:       modules,
		Env:           append([]string{standardPath}, about.env...),
		Config:        about.config,
		From:          i.origin.String(),
	}, nil
}

// read reads what the image is to have in it, and what it says of itself.
func (i *imported) read(ctx context.Context) (*rootfs.Tree, container, error) {
	if i.origin.kind == originDir {
		tree, err := rootfs.FromDir(ctx, i.origin.path, rootfs.Limits{})
		return tree, container{}, err
	}
	about := container{layers: []rootfs.Layer{{
		Name: filepath.Base(i.origin.path),
		Open: func() (io.ReadCloser, error) { return os.Open(i.origin.path) },
	}}}
	if i.origin.isContainer() {
		var err error
		if about, err = openContainer(i.origin); err != nil {
			return nil, container{}, err
		}
	}
	tree, err := rootfs.Read(ctx, about.layers, rootfs.Limits{}, nil)
	if err == nil && about.config.WorkingDir != "" {
		// It need not be in any layer.
		err = makeDirectories(tree, about.config.WorkingDir)
	}
	return tree, about, err
}

// makeDirectories makes a directory of an absolute path, and those above it, unless they are there.
func makeDirectories(tree *rootfs.Tree, dir string) error {
	at := ""
	for part := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		at = path.Join(at, part)
		if err := tree.Mkdir(at, 0o755); err != nil {
			return fmt.Errorf("make working directory %s: %w", dir, err)
		}
	}
	return nil
}

// roomFor is how large a root filesystem is to be, in bytes: as all are, or larger if that would
// not leave a quarter free.
func roomFor(tree *rootfs.Tree) int64 {
	const unit = 1 << 30
	wanted := tree.Bytes() + tree.Bytes()/3
	return max(rootFSSize, (wanted+unit-1)/unit*unit)
}

// blame wraps ErrOrigin if it is the origin that an import failed for.
func (i *imported) blame(err error) error {
	if errors.Is(err, ErrOrigin) {
		return err
	}
	for _, fault := range []error{rootfs.ErrLayer, rootfs.ErrDigest, rootfs.ErrTooLarge, fs.ErrNotExist, fs.ErrPermission} {
		if errors.Is(err, fault) {
			return fmt.Errorf("%w: %s: %w", ErrOrigin, i.origin, err)
		}
	}
	return err
}

// describe is what the root filesystem says that it is, or else what its file is called.
func (i *imported) describe(ctx context.Context, tree *rootfs.Tree) string {
	var release apt.Release
	if data, err := tree.ReadFile(ctx, "etc/os-release"); err == nil {
		release = apt.ParseRelease(data)
	}
	return cmp.Or(release.Name, filepath.Base(i.origin.path))
}

// takeKernel puts the kernel and the modules for booting into the image, and those for programs
// into the tree. It returns the files of the former, in load order.
func (i *imported) takeKernel(ctx context.Context, job *Job, debugfs string, tree *rootfs.Tree) ([]string, error) {
	if err := share(i.base.Kernel, filepath.Join(job.Dir, kernelFile)); err != nil {
		return nil, fmt.Errorf("copy kernel: %w", err)
	}
	if err := os.Mkdir(filepath.Join(job.Dir, modulesDir), 0o755); err != nil {
		return nil, fmt.Errorf("copy kernel: %w", err)
	}
	var files []string
	for _, module := range i.base.Modules {
		file := filepath.Base(module)
		if err := share(module, filepath.Join(job.Dir, modulesDir, file)); err != nil {
			return nil, fmt.Errorf("copy kernel: %w", err)
		}
		files = append(files, file)
	}
	// The other modules are in the filesystem of the image that has the kernel, which nobody
	// needs to mount. debugfs ends well whatever happened.
	version := i.base.KernelVersion
	if _, err := job.run(ctx, command{name: debugfs, args: []string{
		"-R", "rdump " + path.Join(guestModulesDir, version) + " .", i.base.RootFS,
	}}); err != nil {
		return nil, err
	}
	from := filepath.Join(job.Dir, version)
	if _, err := os.Stat(filepath.Join(from, "modules.dep")); err != nil {
		return nil, fmt.Errorf("copy kernel modules from image %q: %w", i.base.Name, err)
	}
	if err := tree.AddDir(ctx, from, path.Join("lib/modules", version)); err != nil {
		return nil, i.blame(fmt.Errorf("add kernel modules: %w", err))
	}
	return files, nil
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
