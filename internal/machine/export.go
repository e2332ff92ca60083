package machine

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/smolvm/smolvm/internal/image"
)

// SaveFormat is what an image is saved as.
type SaveFormat = image.SaveFormat

// The formats.
const (
	SaveOCI    = image.SaveOCI
	SaveDocker = image.SaveDocker
)

// SaveImage writes an image to an archive. The error wraps image.ErrNotFound if there is none, and
// ErrInvalidOption if there is no such format.
func (h *Host) SaveImage(ctx context.Context, name string, w io.Writer, format SaveFormat) error {
	err := h.images.Save(ctx, name, w, format, h.opts.Progress)
	if errors.Is(err, image.ErrFormat) {
		return fmt.Errorf("%w: %w", ErrInvalidOption, err)
	}
	return err
}

// LoadImages makes images of those in an archive, under the names that they have in it. If it fails,
// those that it returns are there nevertheless. The error wraps ErrInvalidOption if no image can be
// made of what is there.
func (h *Host) LoadImages(ctx context.Context, archive io.Reader) ([]ImageInfo, error) {
	images, err := h.images.Load(ctx, archive, h.opts.Progress)
	infos := []ImageInfo{}
	for _, img := range images {
		info, infoErr := h.currentImage(ctx, img)
		err = errors.Join(err, infoErr)
		infos = append(infos, info)
	}
	if err != nil {
		return infos, badOrigin(err)
	}
	return infos, nil
}

// PushImage puts an image into a registry, and returns its digest there. The error wraps
// image.ErrNotFound if there is none, and ErrInvalidOption if it cannot be pushed to such a place.
func (h *Host) PushImage(ctx context.Context, name, to string) (digest string, err error) {
	digest, err = h.images.Push(ctx, name, to, h.opts.Progress)
	if err != nil {
		return "", badOrigin(err)
	}
	return digest, nil
}
