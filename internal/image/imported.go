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
	"slices"
	"strings"

	"github.com/smolvm/smolvm/internal/image/apt"
	"github.com/smolvm/smolvm/internal/image/ext4"
	"github.com/smolvm/smolvm/internal/image/partition"
	"github.com/smolvm/smolvm/internal/image/rootfs"
	"github.com/smolvm/smolvm/internal/oci"
	"github.com/smolvm/smolvm/internal/oci/blob"
	"github.com/smolvm/smolvm/internal/qcow2"
)

// imported makes an image of a root filesystem, or a container image, that somebody has.
type imported struct {
	store  *Store
	from   oci.Reference
	own    *Image // what it is made of, if that is another image; then nothing is from elsewhere
	said   string // what to call from; empty: as it is
	kernel kernelSource
}

var _ Source = (*imported)(nil)

// The stages of an import, in their order.
const (
	stageFetch      = "fetch layers" // of a container image
	stageLayers     = "unpack layers"
	stageRead       = "read files"
	stageGetKernel  = "get kernel"
	importStages    = 4 // with stageWrite
	containerStages = importStages + 1
)

// Build implements Source.
func (i *imported) Build(ctx context.Context, job *Job) (Manifest, error) {
	tools, err := findTools(append(i.kernel.tools(), tool{"mke2fs", "e2fsprogs"})...)
	if err != nil {
		return Manifest{}, err
	}
	contents, err := i.read(ctx, job)
	if contents != nil {
		defer contents.release()
	}
	if err != nil {
		return Manifest{}, i.blame(err)
	}
	job.Stage(stageGetKernel, contents.stages)
	kernel, err := i.kernel.install(ctx, job, tools, contents.tree)
	if err != nil {
		return Manifest{}, i.blame(err)
	}
	job.Stage(stageWrite, contents.stages)
	err = contents.tree.WriteExt4(ctx, filepath.Join(job.Dir, rootFSFile), rootfs.Ext4Options{
		Mke2fs: tools["mke2fs"], Size: roomFor(contents.tree), Label: rootLabel, Progress: job.bytes(contents.tree.Bytes()),
	})
	if err != nil {
		return Manifest{}, i.blame(err)
	}
	return Manifest{
		Description:   fmt.Sprintf("%s, Linux %s", i.describe(ctx, contents.tree), kernel.version),
		KernelVersion: kernel.version,
		KernelPackage: kernel.pkg,
		Modules:       kernel.boot,
		Env:           contents.env,
		Config:        contents.config,
		From:          cmp.Or(i.said, i.from.String()),
		Digest:        contents.digest,
	}, nil
}

// contents are what an image is to have in it, and what that says of itself.
type contents struct {
	tree    *rootfs.Tree
	stages  int
	env     []string // besides that of config
	config  Config
	digest  string
	release func() // to be called when the tree is written
}

// read reads what the image is to have in it. The caller releases what it returns, also if it
// fails.
func (i *imported) read(ctx context.Context, job *Job) (*contents, error) {
	c := &contents{stages: importStages, env: []string{standardPath}, release: func() {}}
	var err error
	if i.own != nil {
		return c, i.readImage(ctx, job, c)
	}
	switch i.from.Kind {
	case oci.Dir:
		c.stages--
		job.Stage(stageRead, c.stages)
		c.tree, err = rootfs.FromDir(ctx, i.from.Path, rootfs.Limits{})
		return c, err
	case oci.Tar:
		info, err := os.Stat(i.from.Path)
		if err != nil {
			return c, err
		}
		c.tree, err = readLayers(ctx, job, []rootfs.Layer{{
			Name: filepath.Base(i.from.Path),
			Open: func() (io.ReadCloser, error) { return os.Open(i.from.Path) },
		}}, info.Size(), c.stages)
		return c, err
	case oci.Registry, oci.Layout, oci.OCIArchive, oci.DockerArchive:
		return c, i.readContainer(ctx, job, c)
	case oci.Disk:
		c.stages = diskStages
		c.tree, c.release, err = readDisk(ctx, job, i.from.Path)
		return c, err
	}
	return c, fmt.Errorf("%w: %s", ErrOrigin, i.from)
}

// readImage reads an image of this store.
func (i *imported) readImage(ctx context.Context, job *Job, c *contents) error {
	c.stages--
	job.Stage(stageRead, c.stages)
	tree, disk, err := treeOf(ctx, i.own)
	if err != nil {
		return err
	}
	c.tree, c.env, c.config, c.digest = tree, ownEnv(i.own), i.own.Config, i.own.Digest
	c.release = func() { _ = disk.Close() } // nothing was written to it
	if _, same := i.kernel.(*ownKernel); same {
		return nil
	}
	return removeModules(tree, i.own.KernelVersion)
}

// ownEnv is the environment of an image but for what a container image says.
func ownEnv(img *Image) []string {
	return slices.Clone(img.Env[:len(img.Env)-len(img.Config.Env)])
}

// readContainer reads a container image.
func (i *imported) readContainer(ctx context.Context, job *Job, c *contents) error {
	source, err := i.store.newContainer(i.from, job.Dir)
	if err != nil {
		return err
	}
	tree, img, release, err := source.read(ctx, job)
	c.release = release
	if err != nil {
		return err
	}
	c.tree, c.stages, c.config, c.digest = tree, containerStages, img.Config, img.Digest
	if dir := img.Config.WorkingDir; dir != "" {
		return makeDirectories(tree, dir) // it need not be in any layer
	}
	return nil
}

// readLayers reads layers of so many bytes.
func readLayers(ctx context.Context, job *Job, layers []rootfs.Layer, size int64, stages int) (*rootfs.Tree, error) {
	job.Stage(stageLayers, stages)
	dir := filepath.Join(job.Dir, "layers")
	if err := os.RemoveAll(dir); err != nil { // of an attempt before
		return nil, fmt.Errorf("unpack layers: %w", err)
	}
	layers, err := rootfs.Unpack(ctx, layers, dir, job.bytes(size))
	if err != nil {
		return nil, err
	}
	job.Stage(stageRead, stages)
	return rootfs.Read(ctx, layers, rootfs.Limits{}, nil)
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
	if _, ok := errors.AsType[*fetchError](err); ok && i.from.Kind == oci.Registry || errors.Is(err, ErrOrigin) || errors.Is(err, ErrKernel) {
		return err
	}
	for _, fault := range []error{
		rootfs.ErrLayer, rootfs.ErrDigest, rootfs.ErrTooLarge, fs.ErrNotExist, fs.ErrPermission,
		ext4.ErrDamaged, ext4.ErrUnclean, ext4.ErrUnsupported, ext4.ErrAttributes, partition.ErrFormat,
		qcow2.ErrFormat, qcow2.ErrOther, qcow2.ErrUnsupported, errDisk,
		oci.ErrNotFound, oci.ErrPlatform, oci.ErrInvalid, oci.ErrTooLarge, blob.ErrDigest,
	} {
		if errors.Is(err, fault) {
			return fmt.Errorf("%w: %s: %w", ErrOrigin, cmp.Or(i.said, i.from.String()), err)
		}
	}
	return err
}

// describe is what the root filesystem says that it is, or else what its file is called.
func (i *imported) describe(ctx context.Context, tree *rootfs.Tree) string {
	called := filepath.Base(cmp.Or(i.said, i.from.Path))
	if i.from.Kind == oci.Registry {
		called = i.from.Familiar()
	}
	return cmp.Or(systemOf(ctx, tree), called)
}

// systemOf is what a root filesystem says that it is, empty if it does not.
func systemOf(ctx context.Context, tree *rootfs.Tree) string {
	data, err := tree.ReadFile(ctx, "etc/os-release")
	if err != nil {
		return ""
	}
	return apt.ParseRelease(data).Name
}
