package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/smolvm/smolvm/internal/image/rootfs"
	"github.com/smolvm/smolvm/internal/oci"
	"github.com/smolvm/smolvm/internal/oci/blob"
)

// Config is what a container image says of the commands that run in it. The zero value says
// nothing.
type Config = oci.Config

// registryBlobs is where a store keeps what came from registries.
const registryBlobs = ".blobs"

// blobs opens what came from registries.
func (s *Store) blobs() (*blob.Store, error) { return blob.Open(filepath.Join(s.dir, registryBlobs)) }

// registryOptions say how registries are spoken to.
func (s *Store) registryOptions() (oci.Options, error) {
	registries, err := oci.HostRegistries()
	return oci.Options{Registries: registries, Insecure: s.insecure, Log: s.log}, err
}

// container gets a container image.
type container struct {
	from oci.Reference
	opts oci.Options // with the cache that its layers get into
}

// newContainer prepares to get a container image. What is from a registry is kept in the store,
// for the next image that has some of it; what is on this host in scratch, a directory for the
// time being.
func (s *Store) newContainer(from oci.Reference, scratch string) (c container, err error) {
	c = container{from: from, opts: oci.Options{Log: s.log}}
	if from.Kind != oci.Registry {
		c.opts.Cache, err = blob.Open(filepath.Join(scratch, "blobs"))
		return c, err
	}
	if c.opts, err = s.registryOptions(); err != nil {
		return c, err
	}
	c.opts.Cache, err = s.blobs()
	return c, err
}

// read gets the image and reads what it has in it. The layers must not be removed from the cache
// until the tree is written: the caller owes a release, also if it fails.
func (c *container) read(ctx context.Context, job *Job) (tree *rootfs.Tree, img *oci.Image, release func(), err error) {
	hold, err := c.opts.Cache.Hold(ctx)
	if err != nil {
		return nil, nil, func() {}, err
	}
	release = func() { _ = hold.Close() } // nothing was written to it
	for mended := false; ; mended = true {
		if tree, img, err = c.readOnce(ctx, job); err == nil || mended || !isContents(err) {
			return tree, img, release, err
		}
		// It may be that the cache was damaged since that was fetched.
		damaged, verr := c.verify(ctx, img)
		if verr != nil || !damaged {
			return tree, img, release, errors.Join(err, verr)
		}
		job.Log.Warn("what was kept of a container image is damaged, fetch it anew", "error", err)
		job.restart()
	}
}

// isContents tells whether it is what the layers hold that something failed for.
func isContents(err error) bool {
	return errors.Is(err, rootfs.ErrLayer) || errors.Is(err, rootfs.ErrDigest) || errors.Is(err, blob.ErrDamaged)
}

func (c *container) readOnce(ctx context.Context, job *Job) (*rootfs.Tree, *oci.Image, error) {
	job.Stage(stageFetch, containerStages)
	opts := c.opts
	opts.Progress = job.layers()
	img, err := oci.Resolve(ctx, c.from, opts)
	if err != nil {
		return nil, nil, &fetchError{err}
	}
	layers := make([]rootfs.Layer, 0, len(img.Layers))
	size := int64(0)
	for i, l := range img.Layers {
		layers = append(layers, rootfs.Layer{
			Name: fmt.Sprintf("layer %d of %d", i+1, len(img.Layers)), DiffID: l.DiffID,
			Open: func() (io.ReadCloser, error) { return img.OpenLayer(l) },
		})
		size += l.Size
	}
	tree, err := readLayers(ctx, job, layers, size, containerStages)
	return tree, img, err
}

// fetchError says why a container image was not got from where it is.
type fetchError struct{ err error }

func (e *fetchError) Error() string { return e.err.Error() }

// Unwrap returns the reason.
func (e *fetchError) Unwrap() error { return e.err }

// verify removes the layers from the cache that are damaged, and tells whether there are any.
func (c *container) verify(ctx context.Context, img *oci.Image) (damaged bool, err error) {
	if img == nil {
		return false, nil
	}
	for _, l := range img.Layers {
		switch err := c.opts.Cache.Verify(ctx, blob.Digest(l.Digest)); {
		case errors.Is(err, blob.ErrDamaged):
			damaged = true
		case err != nil:
			return damaged, err
		}
	}
	return damaged, nil
}
