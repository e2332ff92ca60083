package smolvm

import (
	"context"
	"errors"
	"io"

	"github.com/smolvm/smolvm/internal/control"
	"github.com/smolvm/smolvm/internal/machine"
)

// ImageInfo is what can be said of an image.
type ImageInfo = machine.ImageInfo

// ImageConfig is what a container image says of how it is to be run.
type ImageConfig = machine.ImageConfig

// InspectImage tells about the image that a name means. It fails with ErrImageNotFound if there is
// none here.
func InspectImage(ctx context.Context, image string, opts ...Option) (ImageInfo, error) {
	return withHost(opts, func(h *control.Host) (ImageInfo, error) { return h.InspectImage(ctx, image) })
}

// Pull makes sure that an image is there, so that [New] need not make it. If it is from a
// registry, it is the one that its name means there now. VMs that were made on a former one
// keep it.
func Pull(ctx context.Context, image string, opts ...Option) (ImageInfo, error) {
	return withHost(opts, func(h *control.Host) (ImageInfo, error) { return h.Pull(ctx, image) })
}

// Images returns the images that VMs can be made on, in the order of their names, the
// ones in use by VMs of this data directory included that a newer one of the same name
// has replaced.
func Images(ctx context.Context, opts ...Option) ([]ImageInfo, error) {
	return withHost(opts, func(h *control.Host) ([]ImageInfo, error) { return h.Images(ctx) })
}

// BuildOptions say what an image is built from.
type BuildOptions = machine.BuildOptions

// BuildImage builds an image anew and gives it a name, which means it from then on. VMs
// that were made on the former image of that name keep it. It fails with ErrInvalidOption if
// there is no such package, or if no image can be made of build.From.
func BuildImage(ctx context.Context, name string, build BuildOptions, opts ...Option) (ImageInfo, error) {
	return withHost(opts, func(h *control.Host) (ImageInfo, error) { return h.BuildImage(ctx, name, build) })
}

// CommitOptions say what an image of a VM's disk is to say of itself.
type CommitOptions = machine.CommitOptions

// Commit makes an image of the VM's disk as it is now, and gives it a name, which means it from then
// on. VMs that were made on the former image of that name keep it. In it are all files but those that
// make the VM this one: its host name and machine ID, its addresses and name servers, SSH host keys of
// OpenSSH, and what is in /tmp and /run. Its kernel, and what it says of commands, are those of the
// VM's image, with commit.Changes. A VM that runs writes out its disk first, and goes on all the time:
// what it writes meanwhile may be there or not. Other disks are left out.
//
// It fails with ErrNotWritten if the VM is paused or suspended, and with ErrInvalidOption if a change
// cannot be understood.
func (v *VM) Commit(ctx context.Context, name string, commit CommitOptions) (ImageInfo, error) {
	return v.vm.Commit(ctx, name, commit)
}

// SaveFormat is what an image is saved as.
type SaveFormat = machine.SaveFormat

// The formats of [SaveImage].
const (
	SaveOCI    = machine.SaveOCI    // an archive of an OCI image layout
	SaveDocker = machine.SaveDocker // what docker load reads
)

// SaveImage writes an image to an archive, as a container image of one layer, without its kernel. It
// fails with ErrImageNotFound.
func SaveImage(ctx context.Context, name string, w io.Writer, format SaveFormat, opts ...Option) error {
	_, err := withHost(opts, func(h *control.Host) (struct{}, error) { return struct{}{}, h.SaveImage(ctx, name, w, format) })
	return err
}

// LoadImages makes images of those in an archive, under the names that they have in it: what docker
// save, podman save or [SaveImage] wrote, which its contents tell. Names that there are mean the new
// images from then on. If it fails, the images that it returns are there nevertheless; it fails with
// ErrInvalidOption if no image can be made of the archive.
func LoadImages(ctx context.Context, archive io.Reader, opts ...Option) ([]ImageInfo, error) {
	return withHost(opts, func(h *control.Host) ([]ImageInfo, error) { return h.LoadImages(ctx, archive) })
}

// PushImage puts an image into a registry, as a container image of one layer, without its kernel,
// and returns its digest there. to says where, as in "docker://ghcr.io/team/app:1"; if it is empty,
// that is what the image is called. Logins are those of docker login and podman login. It fails with
// ErrImageNotFound, or ErrInvalidOption if there can be no such place.
func PushImage(ctx context.Context, name, to string, opts ...Option) (digest string, err error) {
	return withHost(opts, func(h *control.Host) (string, error) { return h.PushImage(ctx, name, to) })
}

// RemoveImage removes the image of that name from the data directory. It fails with
// ErrImageInUse while VMs are made on it, ErrImageNotFound if there is none, and
// ErrImageShared if it is another data directory's.
func RemoveImage(ctx context.Context, name string, opts ...Option) error {
	_, err := withHost(opts, func(h *control.Host) (struct{}, error) { return struct{}{}, h.RemoveImage(ctx, name) })
	return err
}

// PruneOptions say what [Prune] spares.
type PruneOptions = machine.PruneOptions

// Pruned is one thing that [Prune] removes.
type Pruned = machine.Pruned

// Prune removes what is not in use: VMs that do not run, and images that no VM is made
// on. With DryRun it only tells what it would remove.
func Prune(ctx context.Context, prune PruneOptions, opts ...Option) ([]Pruned, error) {
	return withHost(opts, func(h *control.Host) ([]Pruned, error) { return h.Prune(ctx, prune) })
}

// withHost does something with the host that opts describe.
func withHost[T any](opts []Option, do func(*control.Host) (T, error)) (T, error) {
	host, err := control.NewHost(newConfig(opts).host)
	if err != nil {
		var none T
		return none, err
	}
	done, err := do(host)
	return done, errors.Join(err, host.Close())
}
