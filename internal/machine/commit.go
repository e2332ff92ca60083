package machine

import (
	"context"
	"errors"
	"fmt"

	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/saved"
	"github.com/smolvm/smolvm/internal/store"
)

// CommitOptions say what an image of a VM's disk is to say of itself.
type CommitOptions = image.CommitOptions

// CheckCommit tells whether an image can be called so, and say so of itself. The error wraps
// image.ErrInvalidName or ErrInvalidOption.
func CheckCommit(name string, opts CommitOptions) error {
	return badChange(image.CheckCommit(name, opts))
}

// CommitImage makes an image of the disk in a draft that CaptureDisk has filled, and makes it what
// the name means. Its kernel, and what it says of itself, are those of the image that the VM was
// made on.
func (h *Host) CommitImage(ctx context.Context, d *store.Draft, name string, opts CommitOptions) (ImageInfo, error) {
	snap, err := d.Snapshot()
	if err != nil {
		return ImageInfo{}, err
	}
	base, err := h.images.Find(snap.Image, snap.ImageID)
	if err != nil {
		return ImageInfo{}, err
	}
	disk := image.Disk{VM: snap.VM, Path: saved.NewDraft(d.Dir).Disk, Base: base}
	img, err := h.images.Commit(ctx, name, disk, opts, h.opts.Progress)
	if err != nil {
		return ImageInfo{}, badChange(err)
	}
	return h.currentImage(ctx, img)
}

// badChange wraps ErrInvalidOption if a change is to blame.
func badChange(err error) error {
	if errors.Is(err, image.ErrChange) {
		return fmt.Errorf("%w: %w", ErrInvalidOption, err)
	}
	return err
}
