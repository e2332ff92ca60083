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
	"strings"

	"github.com/smolvm/smolvm/internal/image/ext4"
	"github.com/smolvm/smolvm/internal/image/partition"
	"github.com/smolvm/smolvm/internal/image/rootfs"
	"github.com/smolvm/smolvm/internal/qcow2"
	"github.com/smolvm/smolvm/internal/sparse"
)

// errDisk is wrapped by errors about a disk that no image can be made of.
var errDisk = errors.New("unusable disk")

// maxDisk is how large a disk of somebody's may be that an image is made of, in bytes. A hostile one
// may fill as much of this host's.
const maxDisk = 128 << 30

const (
	stageCopyDisk = "copy disk"
	diskStages    = 4

	// Copies in a job's directory: of a disk as it was given, of what a guest sees of it, and of its
	// filesystem alone.
	scratchSource     = "disk.qcow2"
	scratchDisk       = "disk.raw"
	scratchFilesystem = "filesystem.raw"
)

// disk is a disk that is read: an ext4 filesystem, or one with partitions of which one is that.
type disk struct {
	file   *os.File
	offset int64 // of the filesystem
	size   int64
	own    bool // the file is a copy in the job's directory
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
	if err := d.measure(); err != nil {
		return nil, err
	}
	if err := checkSize(d.size); err != nil {
		return nil, err
	}
	if qcow2.IsDisk(file) {
		if err := d.convert(ctx, job); err != nil {
			return nil, err
		}
	}
	if err := d.findFilesystem(); err != nil {
		return nil, err
	}
	return d.read(ctx, job, diskStages)
}

// openOwn reads the filesystem on a disk of a VM, an overlay on others, all of which this host made.
func (d *disk) openOwn(ctx context.Context, job *Job, path string, stages int) (*rootfs.Tree, error) {
	job.Stage(stageCopyDisk, stages)
	tools, err := findTools(tool{"qemu-img", "qemu-utils"})
	if err != nil {
		return nil, err
	}
	// The path is the value of an option, so that nothing in it has a meaning.
	source := "driver=qcow2,file.driver=file,file.filename=" + strings.ReplaceAll(path, ",", ",,")
	if _, err := job.run(ctx, command{name: tools["qemu-img"], args: []string{
		"convert", "--image-opts", source, "-O", "raw", scratchDisk,
	}}); err != nil {
		return nil, err
	}
	if err := d.use(job, scratchDisk); err != nil {
		return nil, err
	}
	if err := d.measure(); err != nil {
		return nil, err
	}
	return d.read(ctx, job, stages)
}

// measure finds out how large the disk is.
func (d *disk) measure() error {
	info, err := d.file.Stat()
	if err != nil {
		return fmt.Errorf("read disk: %w", err)
	}
	d.size = info.Size()
	return nil
}

// checkSize refuses what somebody may have made to fill this host's disk.
func checkSize(size int64) error {
	if size > maxDisk {
		return fmt.Errorf("%w: it has %d bytes, of which at most %d are read", errDisk, size, int64(maxDisk))
	}
	return nil
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

// convert goes on with what a guest sees of a disk in QEMU's format. That is judged, and read, in a
// copy, which nobody changes in between.
func (d *disk) convert(ctx context.Context, job *Job) error {
	tools, err := findTools(tool{"qemu-img", "qemu-utils"})
	if err != nil {
		return err
	}
	if err := d.copyAs(ctx, job, scratchSource); err != nil {
		return err
	}
	size, err := qcow2.CheckAlone(d.file.Name())
	if err != nil {
		return fmt.Errorf("%w: %w", errDisk, errors.Unwrap(err))
	}
	if err := checkSize(size); err != nil {
		return err
	}
	out, err := createScratch(job, scratchDisk, size)
	if err != nil {
		return err
	}
	_, err = job.run(ctx, command{
		name: tools["qemu-img"], files: []*os.File{d.file, out}, unprivileged: true,
		args: []string{"convert", "-n", "--target-is-zero", "-f", qcow2.Qcow2, "-O", qcow2.Raw, fileOf(0), fileOf(1)},
	})
	if err := errors.Join(err, out.Close(), os.Remove(d.file.Name())); err != nil {
		return fmt.Errorf("%w: %w", errDisk, err)
	}
	if err := d.use(job, scratchDisk); err != nil {
		return err
	}
	return d.measure()
}

// createScratch makes a file in a job's directory, all hole, that unprivileged programs of the job can
// read and write. Nobody else gets into the directory.
func createScratch(job *Job, name string, size int64) (*os.File, error) {
	const all = 0o666
	file, err := os.OpenFile(filepath.Join(job.Dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, all)
	if err != nil {
		return nil, fmt.Errorf("copy disk: %w", err)
	}
	if err := errors.Join(file.Chmod(all), file.Truncate(size)); err != nil {
		return nil, errors.Join(fmt.Errorf("copy disk: %w", err), file.Close())
	}
	return file, nil
}

// copyAs goes on with a copy of the filesystem, or of what the disk is as yet, but for its holes.
func (d *disk) copyAs(ctx context.Context, job *Job, name string) error {
	out, err := createScratch(job, name, d.size)
	if err != nil {
		return err
	}
	if err := errors.Join(sparse.Copy(ctx, out, d.file, d.offset, d.size), out.Close()); err != nil {
		return fmt.Errorf("copy disk: %w", err)
	}
	d.offset = 0
	return d.use(job, name)
}

// use goes on with a copy in the job's directory.
func (d *disk) use(job *Job, name string) error {
	d.close()
	var err error
	if d.file, err = os.Open(filepath.Join(job.Dir, name)); err != nil {
		return fmt.Errorf("read disk: %w", err)
	}
	d.own = true
	return nil
}

// mend has e2fsck do what the kernel, or it, would do at the next mount. The disk stays as it is.
func (d *disk) mend(ctx context.Context, job *Job) error {
	tools, err := findTools(tool{"e2fsck", "e2fsprogs"})
	if err != nil {
		return err
	}
	// Of a journal e2fsck knows only at the beginning of a file.
	if !d.own || d.offset != 0 {
		if err := d.copyAs(ctx, job, scratchFilesystem); err != nil {
			return err
		}
	}
	if err := d.file.Chmod(0o666); err != nil { // as createScratch does
		return fmt.Errorf("copy disk: %w", err)
	}
	_, err = job.run(ctx, command{
		name: tools["e2fsck"], args: []string{"-fy", fileOf(0)}, files: []*os.File{d.file}, unprivileged: true,
	})
	const mended = 1 | 2 // bits of the exit code that tell of success
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 && exit.ExitCode()&^mended == 0 {
		return nil
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", errDisk, err)
	}
	return err
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
