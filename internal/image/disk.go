package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/smolvm/smolvm/internal/image/ext4"
	"github.com/smolvm/smolvm/internal/image/partition"
	"github.com/smolvm/smolvm/internal/image/rootfs"
	"github.com/smolvm/smolvm/internal/qcow2"
	"github.com/smolvm/smolvm/internal/sparse"
)

// errDisk is wrapped by errors about a disk that no image can be made of.
var errDisk = errors.New("unusable disk")

// maxDisk is how large a disk may be that an image is made of, in bytes. A hostile one may fill as
// much of this host's.
const maxDisk = 128 << 30

const (
	stageCopyDisk = "copy disk"
	diskStages    = 4

	// Copies of a disk, and of its filesystem alone, in a job's directory.
	scratchDisk       = "disk.raw"
	scratchFilesystem = "filesystem.raw"
)

// disk is a disk that is read: an ext4 filesystem, or one with partitions of which one is that.
type disk struct {
	file   *os.File
	offset int64 // of the filesystem
	size   int64
	own    string // the name of the file in the job's directory, if it is a copy
}

// readDisk reads the filesystem on the disk at a path, which is anybody's: raw, or qcow2. The tree
// can be written until release is called, which is never nil.
func readDisk(ctx context.Context, job *Job, path string) (tree *rootfs.Tree, release func(), err error) {
	d := &disk{}
	tree, err = d.open(ctx, job, path)
	return tree, d.close, err
}

func (d *disk) close() {
	if d.file != nil {
		_ = d.file.Close() // nothing was written to it
	}
}

func (d *disk) open(ctx context.Context, job *Job, path string) (*rootfs.Tree, error) {
	job.Stage(stageCopyDisk, diskStages)
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read disk: %w", err)
	}
	d.file = file
	if qcow2.IsDisk(file) {
		if size, err := qcow2.CheckAlone(path); err != nil {
			return nil, err
		} else if size > maxDisk {
			return nil, fmt.Errorf("%w: it has %d bytes, of which at most %d are read", errDisk, size, int64(maxDisk))
		}
		if err := d.convert(ctx, job, path); err != nil {
			return nil, err
		}
	}
	info, err := d.file.Stat()
	if err != nil {
		return nil, fmt.Errorf("read disk: %w", err)
	}
	if d.size = info.Size(); d.size > maxDisk {
		return nil, fmt.Errorf("%w: it has %d bytes, of which at most %d are read", errDisk, d.size, int64(maxDisk))
	}
	if err := d.findFilesystem(); err != nil {
		return nil, err
	}
	return d.read(ctx, job, diskStages)
}

// openOwn reads the filesystem on a disk of a VM, an overlay on others, all of which this host made.
func (d *disk) openOwn(ctx context.Context, job *Job, path string, stages int) (*rootfs.Tree, error) {
	job.Stage(stageCopyDisk, stages)
	if err := d.convert(ctx, job, path); err != nil {
		return nil, err
	}
	info, err := d.file.Stat()
	if err != nil {
		return nil, fmt.Errorf("read disk: %w", err)
	}
	d.size = info.Size()
	return d.read(ctx, job, stages)
}

// read reads the filesystem. One that was not unmounted is mended first, in a copy.
func (d *disk) read(ctx context.Context, job *Job, stages int) (*rootfs.Tree, error) {
	job.Stage(stageRead, stages)
	device := func() io.ReaderAt { return io.NewSectionReader(d.file, d.offset, d.size) }
	tree, err := rootfs.FromExt4(ctx, device(), d.size, rootfs.Limits{})
	if !errors.Is(err, ext4.ErrUnclean) {
		return tree, err
	}
	if err := d.mend(ctx, job); err != nil {
		return nil, err
	}
	return rootfs.FromExt4(ctx, device(), d.size, rootfs.Limits{})
}

// convert makes a copy of a qcow2 disk that is none any more.
func (d *disk) convert(ctx context.Context, job *Job, path string) error {
	tools, err := findTools(tool{"qemu-img", "qemu-utils"})
	if err != nil {
		return err
	}
	// The path is an argument of an option, so that nothing in it has a meaning.
	source := "driver=qcow2,file.driver=file,file.filename=" + escapeOption(path)
	if _, err := job.run(ctx, command{name: tools["qemu-img"], args: []string{
		"convert", "--image-opts", source, "-O", "raw", scratchDisk,
	}}); err != nil {
		return fmt.Errorf("%w: %w", errDisk, err)
	}
	return d.use(job, scratchDisk)
}

// escapeOption is a value as QEMU's options have it.
func escapeOption(value string) string {
	var b []byte
	for _, c := range []byte(value) {
		if b = append(b, c); c == ',' {
			b = append(b, c)
		}
	}
	return string(b)
}

// use goes on with a copy in the job's directory.
func (d *disk) use(job *Job, name string) error {
	d.close()
	var err error
	if d.file, err = os.Open(filepath.Join(job.Dir, name)); err != nil {
		return fmt.Errorf("read disk: %w", err)
	}
	d.own = name
	return nil
}

// mend has e2fsck do what the kernel, or it, would do at the next mount. The disk stays as it is.
func (d *disk) mend(ctx context.Context, job *Job) error {
	tools, err := findTools(tool{"e2fsck", "e2fsprogs"})
	if err != nil {
		return err
	}
	// Of a journal e2fsck knows only at the beginning of a file.
	if d.own == "" || d.offset != 0 {
		if err := d.copyTo(ctx, filepath.Join(job.Dir, scratchFilesystem)); err != nil {
			return fmt.Errorf("copy disk: %w", err)
		}
		d.offset = 0
		if err := d.use(job, scratchFilesystem); err != nil {
			return err
		}
	}
	_, err = job.run(ctx, command{name: tools["e2fsck"], args: []string{"-fy", d.own}})
	const mended = 1 | 2 // bits of the exit code that tell of success
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 && exit.ExitCode()&^mended == 0 {
		return nil
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", errDisk, err)
	}
	return err
}

// copyTo copies the filesystem to a new file, but for its holes.
func (d *disk) copyTo(ctx context.Context, path string) (err error) {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(d.size); err != nil {
		return err
	}
	return sparse.Copy(ctx, out, d.file, d.offset, d.size)
}

// findFilesystem finds the filesystem: it is all of the disk, or in a partition. Of several the
// one is meant whose type says that it is a root filesystem, else the largest.
func (d *disk) findFilesystem() error {
	if ext4.IsThere(d.file, 0) {
		return nil
	}
	list, err := partition.List(d.file, d.size)
	if err != nil {
		return err
	}
	count := len(list)
	list = slices.DeleteFunc(list, func(p partition.Partition) bool { return !ext4.IsThere(d.file, p.Offset) })
	if len(list) == 0 {
		return fmt.Errorf("%w: there is no ext4, ext3 or ext2 filesystem on it, nor in any of its %d partitions", errDisk, count)
	}
	best := slices.MaxFunc(list, func(a, b partition.Partition) int {
		switch {
		case a.Root != b.Root && a.Root:
			return 1
		case a.Root != b.Root:
			return -1
		}
		return cmp.Compare(a.Size, b.Size)
	})
	d.offset, d.size = best.Offset, best.Size
	return nil
}
