package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/smolvm/smolvm/internal/qcow2"
	"github.com/smolvm/smolvm/internal/store"
)

// Disk is a disk that a VM has besides its own.
type Disk = store.Disk

// The formats of disks.
const (
	DiskRaw   = store.DiskRaw
	DiskQcow2 = store.DiskQcow2
)

// maxDisks is how many disks a VM may have besides its own. The machine has places for a few more
// devices.
const maxDisks = 16

// qcow2Extension tells that a disk is of that format, if nothing else does.
const qcow2Extension = ".qcow2"

var errOwnDisks = errors.New("the VM can write to disks that are no part of it, which a copy cannot have too")

// completeDisks fills in the defaults of disks and checks them. It fails with ErrInvalidOption.
func completeDisks(disks []Disk) ([]Disk, error) {
	if len(disks) > maxDisks {
		return nil, fmt.Errorf("%w: %d disks are more than %d", ErrInvalidOption, len(disks), maxDisks)
	}
	disks = slices.Clone(disks)
	for i := range disks {
		d := &disks[i]
		if d.Path == "" {
			return nil, fmt.Errorf("%w: the path of a disk is empty", ErrInvalidOption)
		}
		var err error
		if d.Path, err = filepath.Abs(d.Path); err != nil {
			return nil, fmt.Errorf("find disk: %w", err)
		}
		if d.Format == "" {
			d.Format = DiskRaw
			if filepath.Ext(d.Path) == qcow2Extension {
				d.Format = DiskQcow2
			}
		}
		if d.Format != DiskRaw && d.Format != DiskQcow2 {
			return nil, fmt.Errorf("%w: the format of disk %s must be %s or %s, not %q", ErrInvalidOption, d.Path, DiskRaw, DiskQcow2, d.Format)
		}
		if slices.ContainsFunc(disks[:i], func(other Disk) bool { return other.Path == d.Path }) {
			return nil, fmt.Errorf("%w: disk %s is given twice", ErrInvalidOption, d.Path)
		}
	}
	return disks, checkDisks(disks)
}

// checkDisks looks whether disks are there.
func checkDisks(disks []Disk) error {
	for _, d := range disks {
		info, err := os.Stat(d.Path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%w: disk %s is not there; make one of 10 GiB with: truncate -s 10G %s", ErrInvalidOption, d.Path, d.Path)
		case err != nil:
			return fmt.Errorf("%w: disk: %w", ErrInvalidOption, err)
		case !info.Mode().IsRegular() && (info.Mode()&fs.ModeDevice == 0 || info.Mode()&fs.ModeCharDevice != 0):
			return fmt.Errorf("%w: disk %s is neither a file nor a block device", ErrInvalidOption, d.Path)
		case info.Mode().IsRegular() && d.Format == DiskRaw && (info.Size() == 0 || info.Size()%sectorSize != 0):
			return fmt.Errorf("%w: disk %s has %d bytes, no multiple of %d", ErrInvalidOption, d.Path, info.Size(), sectorSize)
		}
		if d.Format == DiskQcow2 {
			if _, err := qcow2.CheckAlone(d.Path); err != nil {
				return fmt.Errorf("%w: %w; make one file of it with: qemu-img convert -O qcow2 %s NEW", ErrInvalidOption, err, d.Path)
			}
		}
	}
	return nil
}

// canWrite tells whether a VM may change one of the disks.
func canWrite(disks []Disk) bool {
	return slices.ContainsFunc(disks, func(d Disk) bool { return !d.ReadOnly })
}
