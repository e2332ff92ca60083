// Package image makes and keeps what virtual machines start from: images, each a
// kernel, the modules that booting needs, and a read-only root filesystem.
//
// An image never changes. Its directory is named by its contents, so that the disks of
// virtual machines can refer to the root filesystem in it by path.
package image

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"
)

var (
	// ErrNotFound is wrapped by errors about an image that does not exist, and that
	// cannot be built either if building was asked for.
	ErrNotFound = errors.New("image not found")
	// ErrInvalidName is wrapped by errors about a string that is no image's name.
	ErrInvalidName = errors.New("invalid image name")
	// ErrHost is wrapped by errors about what this host lacks to build an image.
	// They say what to do.
	ErrHost = errors.New("image cannot be built on this host")
	// ErrPackage is wrapped by errors about a package that cannot be put into an image,
	// because there is none of that name.
	ErrPackage = errors.New("package not found")
)

// Default is the name of the image that is used when none is named.
const Default = "debian"

// Image is an image that is complete and on disk. All paths are absolute.
type Image struct {
	Name          string
	ID            string // names the contents: the same ID is the same image
	Description   string // for people: distribution and kernel
	Created       time.Time
	KernelVersion string
	From          string   // what root filesystem it was made of, if not of packages: "tar:/home/me/alpine.tar.gz"
	Packages      []string // that were asked for beside the usual ones, sorted
	Config        Config   // what it says of the commands that run in it
	// Env is set for every command in a machine of this image, as "NAME=value".
	Env []string

	Shared bool // it is in a store that others share with this one

	Dir        string   // the image's own directory
	Kernel     string   // ELF vmlinux
	Modules    []string // the modules to load before the root filesystem is mounted, in this order
	RootFS     string   // ext4, read-only; a disk is an overlay on it
	RootFSSize int64    // its virtual size in bytes; it occupies far less
}

// DiskUsage returns how many bytes the image occupies on disk.
func (img *Image) DiskUsage() (int64, error) {
	size, err := DiskUsage(img.Dir)
	if err != nil {
		return 0, fmt.Errorf("measure image %q: %w", img.Name, err)
	}
	return size, nil
}

// DiskUsage returns how many bytes a file, or a directory with all that is in it, occupies
// on disk. What vanishes meanwhile, or does not exist, occupies nothing.
func DiskUsage(path string) (int64, error) {
	var blocks int64
	err := filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			blocks += stat.Blocks
		}
		return nil
	})
	const blockSize = 512 // the unit of st_blocks, whatever the filesystem's
	return blocks * blockSize, err
}

// Progress tells how far a build has come.
type Progress struct {
	Stage string // for people, lower case: "download packages"
	// Done of Total stages are finished. Both are zero while another process builds.
	Done, Total int
}

// String is the progress for people, such as "download packages (2 of 7)".
func (p Progress) String() string {
	if p.Total == 0 {
		return p.Stage
	}
	return fmt.Sprintf("%s (%d of %d)", p.Stage, p.Done+1, p.Total)
}

// maxName keeps names short enough for a directory and a line of a table.
const maxName = 64

// CheckName returns an error that wraps ErrInvalidName unless name can be an image's:
// lower-case letters, digits, and ".", "_" and "-" between them.
func CheckName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("%w: %q has %d characters, not 1 to %d", ErrInvalidName, name, len(name), maxName)
	}
	for i, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		inner := i > 0 && i < len(name)-1 && (c == '.' || c == '_' || c == '-')
		if !letter && !inner {
			return fmt.Errorf("%w: %q", ErrInvalidName, name)
		}
	}
	return nil
}
