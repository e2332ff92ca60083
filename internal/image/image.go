// Package image makes and keeps what virtual machines start from: images, each a
// kernel, the modules that booting needs, and a read-only root filesystem.
//
// An image never changes. Its directory is named by its contents, so that the disks of
// virtual machines can refer to the root filesystem in it by path.
package image

import (
	"errors"
	"fmt"
	"time"

	"github.com/smolvm/smolvm/internal/diskusage"
	"github.com/smolvm/smolvm/internal/oci"
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
	KernelPackage string   // that has the kernel, if one has
	From          string   // what it was made of, if not of packages: "tar:/home/me/alpine.tar.gz", "vm:web"
	Digest        string   // of the container image that it was made of, if it was
	Message       string   // what somebody said of it who made it of a VM
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

// Progress tells how far a build has come.
type Progress struct {
	Stage string // for people, lower case: "download packages"
	// Done of Total stages are finished. Both are zero while another process builds.
	Done, Total int
	// Bytes of AllBytes of the stage are done. AllBytes is zero if that is not known.
	Bytes, AllBytes int64
	// Layers are those of a container image that are being fetched, the lowest first.
	Layers []LayerProgress
}

// LayerProgress tells how far a layer has come.
type LayerProgress = oci.Progress

// String is the progress for people, such as "download packages (2 of 7)".
func (p Progress) String() string {
	text := p.Stage
	if p.Total > 0 {
		text = fmt.Sprintf("%s (%d of %d)", p.Stage, p.Done+1, p.Total)
	}
	if p.AllBytes > 0 {
		text += fmt.Sprintf(" %d%%", 100*min(p.Bytes, p.AllBytes)/p.AllBytes)
	}
	return text
}

// Usage returns what the image occupies. Images that are made with the same kernel share it.
func (img *Image) Usage() (diskusage.Usage, error) {
	u, err := diskusage.Measure(img.Dir)
	if err != nil {
		return diskusage.Usage{}, fmt.Errorf("measure image %q: %w", img.Name, err)
	}
	return u, nil
}
