package machine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/smolvm/smolvm/internal/image"
)

// ImageInfo is what can be said of an image.
type ImageInfo struct {
	Name        string    `json:"name"`
	ID          string    `json:"id"`
	Description string    `json:"description"`
	From        string    `json:"from,omitempty"`     // what it was made of, as in BuildOptions
	Digest      string    `json:"digest,omitempty"`   // of the container image that it was made of
	Message     string    `json:"message,omitempty"`  // what somebody said of it who made it of a VM
	Packages    []string  `json:"packages,omitempty"` // that it was built with beside the usual ones
	Created     time.Time `json:"created"`
	Kernel      string    `json:"kernel"`
	Dir         string    `json:"dir"`
	Size        int64     `json:"bytes"`                  // on the host's disk
	SharedSize  int64     `json:"shared_bytes,omitempty"` // of these, what other images have too: the kernel
	Current     bool      `json:"current"`                // it is what the name means now
	Shared      bool      `json:"shared,omitempty"`       // it is in root's data directory, not in this one
	VMs         []string  `json:"vms"`                    // the VMs of this data directory that are made on it
	// Config is what the container image says of the commands that run in it.
	Config ImageConfig `json:"config,omitzero"`
}

// ImageConfig is what a container image says of how it is to be run.
type ImageConfig = image.Config

// Images returns all images by name, of each name the current version first. Those that are
// damaged are left out.
func (h *Host) Images(ctx context.Context) ([]ImageInfo, error) {
	versions, err := h.images.List()
	if err != nil {
		return nil, err
	}
	users, err := h.imageUsers(ctx, nil)
	if err != nil {
		return nil, err
	}
	infos := []ImageInfo{}
	for _, v := range versions {
		if v.Err != nil {
			h.opts.Log.Warn("an image is damaged", "error", v.Err)
			continue
		}
		info, err := describeImage(v, users)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// Pull makes sure that an image is there and, if it is from a registry, that it is the one that
// its name means there now. The error wraps image.ErrNotFound if there is none.
func (h *Host) Pull(ctx context.Context, name string) (ImageInfo, error) {
	img, err := h.images.Ensure(ctx, name, image.PullAlways, h.opts.Progress)
	if err != nil {
		return ImageInfo{}, badOrigin(err)
	}
	return h.currentImage(ctx, img)
}

// BuildOptions say what an image is built from.
type BuildOptions = image.BuildOptions

// BuildImage builds an image anew and makes it what the name means. VMs that are made on the
// one before keep it. The error wraps ErrInvalidOption if there is no such package, or if no
// image can be made of opts.From, and image.ErrInvalidName.
func (h *Host) BuildImage(ctx context.Context, name string, opts BuildOptions) (ImageInfo, error) {
	img, err := h.images.Build(ctx, name, opts, h.opts.Progress)
	if err != nil {
		return ImageInfo{}, badOrigin(err)
	}
	return h.currentImage(ctx, img)
}

// badOrigin wraps ErrInvalidOption if an image cannot be made of what was said.
func badOrigin(err error) error {
	if errors.Is(err, image.ErrPackage) || errors.Is(err, image.ErrOrigin) || errors.Is(err, image.ErrKernel) {
		return fmt.Errorf("%w: %w", ErrInvalidOption, err)
	}
	return err
}

// InspectImage tells about the image that a name means. The error wraps image.ErrNotFound if there
// is none.
func (h *Host) InspectImage(ctx context.Context, name string) (ImageInfo, error) {
	img, err := h.images.Get(name)
	if err != nil {
		return ImageInfo{}, err
	}
	return h.currentImage(ctx, img)
}

// RemoveImage removes the image of that name in all its versions. The error wraps
// ErrImageInUse if a VM of this data directory is made on one of them, or if anybody's VM
// runs on one; then nothing is removed. It wraps image.ErrNotFound if there is none, and
// ErrImageShared if it is another data directory's.
//
// Root's images serve all users. A VM that another user has on one, and that does not run at
// the moment, is not seen: it does not start any more.
func (h *Host) RemoveImage(ctx context.Context, name string) error {
	err := h.images.Remove(ctx, name, func(versions []image.Version) ([]image.Version, error) {
		users, err := h.imageUsers(ctx, nil)
		if err != nil {
			return nil, err
		}
		if err := users.unknown(); err != nil {
			return nil, fmt.Errorf("cannot remove image %q: %w", name, err)
		}
		for _, v := range versions {
			if vms := users.of(v.Image); len(vms) > 0 {
				return nil, fmt.Errorf("cannot remove image %q: %w by %s; remove them first: smolvm rm %s",
					name, ErrImageInUse, strings.Join(vms, ", "), strings.Join(vms, " "))
			}
			if all := users.copiesOf(v.Image); len(all) > 0 {
				return nil, fmt.Errorf("cannot remove image %q: %w by snapshots %s; remove them first: smolvm snapshot rm %s",
					name, ErrImageInUse, strings.Join(all, ", "), strings.Join(all, " "))
			}
		}
		for _, v := range versions {
			if v.InUse() {
				return nil, fmt.Errorf("cannot remove image %q: %w by a VM of another user or data directory", name, ErrImageInUse)
			}
		}
		return versions, nil
	})
	if !errors.Is(err, image.ErrNotFound) {
		return err
	}
	if img, getErr := h.images.Get(name); getErr == nil {
		return fmt.Errorf("cannot remove image %q: %w: %s", name, ErrImageShared, img.Dir)
	}
	return err
}

// currentImage describes an image that its name means.
func (h *Host) currentImage(ctx context.Context, img *image.Image) (ImageInfo, error) {
	users, err := h.imageUsers(ctx, nil)
	if err != nil {
		return ImageInfo{}, err
	}
	return describeImage(image.Version{Image: img, Current: true}, users)
}

func describeImage(v image.Version, users imageUsers) (ImageInfo, error) {
	usage, err := v.Usage()
	if err != nil {
		return ImageInfo{}, err
	}
	return ImageInfo{
		Name: v.Name, ID: v.ID, Description: v.Description, From: v.From, Digest: v.Digest, Message: v.Message, Packages: v.Packages, Created: v.Created,
		Kernel: v.KernelVersion, Dir: v.Dir, Size: usage.Bytes, SharedSize: usage.Shared, Current: v.Current, Shared: v.Shared,
		VMs: users.of(v.Image), Config: v.Config,
	}, nil
}

// imageUsers tells which VMs of the data directory are made on which image.
type imageUsers struct {
	vms        map[[2]string][]string // by the image's name and ID
	snapshots  map[[2]string][]string // likewise
	unreadable []error                // of the VMs of which it is not known
}

// imageUsers finds the VMs of the data directory, but for those that are as good as gone.
func (h *Host) imageUsers(ctx context.Context, gone []string) (imageUsers, error) {
	users := imageUsers{vms: map[[2]string][]string{}, snapshots: map[[2]string][]string{}}
	entries, err := h.store.List(ctx)
	for _, e := range entries {
		key := [2]string{e.Image, e.ImageID}
		switch {
		case slices.Contains(gone, e.Name):
		case e.Err != nil:
			users.unreadable = append(users.unreadable, fmt.Errorf("which image VM %q is made on is not known: %w", e.Name, e.Err))
		default:
			users.vms[key] = append(users.vms[key], e.Name)
		}
	}
	if err != nil {
		return users, err
	}
	copies, err := h.store.Copies(ctx)
	for _, c := range copies {
		if c.Err != nil {
			users.unreadable = append(users.unreadable, fmt.Errorf("which image a snapshot is made on is not known: %w", c.Err))
			continue
		}
		key := [2]string{c.Image, c.ImageID}
		users.snapshots[key] = append(users.snapshots[key], c.Name)
	}
	return users, err
}

// of returns the names of the VMs that are made on the image. It is never nil.
func (u imageUsers) of(img *image.Image) []string {
	return append([]string{}, u.vms[[2]string{img.Name, img.ID}]...)
}

// copiesOf returns the names of the snapshots that are made on the image.
func (u imageUsers) copiesOf(img *image.Image) []string {
	return u.snapshots[[2]string{img.Name, img.ID}]
}

// unknown says of which VMs it is not known what they are made on. While there are any, every
// image may be in use.
func (u imageUsers) unknown() error {
	if len(u.unreadable) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrImageInUse, errors.Join(u.unreadable...))
}
