package oci

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/smolvm/smolvm/internal/oci/blob"
)

// Resolve finds the image that ref names for a platform, and gets its manifest, configuration and
// layers into the cache. Several layers are fetched at once. What is in the cache already is not
// fetched again, an image that is pinned by a digest and there needs no network, and a download
// that broke off, in whatever process, is gone on with. References of the kinds Tar, Dir and Disk
// have no layers: what is there must be used as it is.
//
// Until it returns it keeps the cache from being pruned. Whoever wants to read the layers
// afterwards, and be sure that they are there, has a blob.Hold of the cache himself.
//
// It fails with ErrNotFound, ErrPlatform, ErrAccess, ErrInvalid, ErrTooLarge, ErrPlainHTTP,
// ErrStalled, blob.ErrDigest, or an error of the network or the disk. When ctx ends, so does it.
func Resolve(ctx context.Context, ref Reference, opts Options) (*Image, error) {
	return with(ctx, ref, opts, func(r *resolver) (*Image, error) { return r.image(ctx) })
}

// Digest finds the image as Resolve does, without what it consists of, and returns the digest of
// its manifest for the platform.
func Digest(ctx context.Context, ref Reference, opts Options) (string, error) {
	return with(ctx, ref, opts, func(r *resolver) (string, error) {
		desc, _, err := r.manifest(ctx)
		return desc.Digest, err
	})
}

// with does something with the resolver of a reference.
func with[T any](ctx context.Context, ref Reference, opts Options, do func(*resolver) (T, error)) (T, error) {
	var none T
	opts, err := opts.withDefaults()
	if err != nil {
		return none, fmt.Errorf("get image: %w", err)
	}
	if ref.Digest != "" {
		if _, err := blob.ParseDigest(ref.Digest); err != nil {
			return none, fmt.Errorf("get image: %w: %w", ErrReference, err)
		}
	}
	hold, err := opts.Cache.Hold(ctx)
	if err != nil {
		return none, fmt.Errorf("get image: %w", err)
	}
	got, err := resolve(ctx, ref, opts, do)
	if err := errors.Join(err, hold.Close()); err != nil {
		return none, fmt.Errorf("get image %s: %w", ref.Familiar(), err)
	}
	return got, nil
}

func resolve[T any](ctx context.Context, ref Reference, opts Options, do func(*resolver) (T, error)) (_ T, err error) {
	src, err := openSource(ctx, ref, opts)
	if err != nil {
		var none T
		return none, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	return do(&resolver{fetcher{src, opts}})
}

// resolver finds one image.
type resolver struct{ fetcher }

func (r *resolver) image(ctx context.Context) (*Image, error) {
	desc, doc, err := r.manifest(ctx)
	if err != nil {
		return nil, err
	}
	if err := doc.check(r.opts.MaxSize); err != nil {
		return nil, err
	}
	data, err := r.read(ctx, *doc.Config, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	config, err := parseConfig(data, len(doc.Layers))
	if err != nil {
		return nil, err
	}
	made := config.platform
	image := &Image{
		Digest:   desc.Digest,
		Platform: made.String(),
		Config:   config.public(),
		Size:     desc.Size + doc.Config.Size,
		cache:    r.opts.Cache,
	}
	switch {
	case made.OS == "" && made.Architecture == "": // made by a tool that does not care
		image.Platform = r.opts.wanted.String()
	case made.OS != r.opts.wanted.OS || made.Architecture != r.opts.wanted.Architecture:
		return nil, r.opts.wanted.none([]string{made.String()})
	}
	var distinct []descriptor
	seen := map[string]bool{}
	for i, layer := range doc.Layers {
		image.Layers = append(image.Layers, Layer{layer.Digest, config.RootFS.DiffIDs[i], layer.Size, string(layer.MediaType)})
		if !seen[layer.Digest] {
			seen[layer.Digest] = true
			distinct = append(distinct, layer)
			image.Size += layer.Size
		}
	}
	if err := r.layers(ctx, distinct); err != nil {
		return nil, err
	}
	image.Reference = r.source.reference()
	return image, nil
}

// manifest finds the manifest for the platform, and has it in the cache.
func (r *resolver) manifest(ctx context.Context) (descriptor, document, error) {
	desc, data, err := r.root(ctx)
	if err != nil {
		return desc, document{}, err
	}
	const mostIndexes = 3 // one in another has been seen
	for range mostIndexes {
		doc, err := parseDocument(data, desc.MediaType)
		if err != nil || doc.MediaType.IsImage() {
			return desc, doc, err
		}
		next, err := r.opts.wanted.choose(doc.Manifests)
		if err != nil {
			return desc, doc, err
		}
		if !next.isManifest() {
			return desc, doc, fmt.Errorf("%w: it is none of a root filesystem, but %q", ErrInvalid, clean(string(next.MediaType)))
		}
		if data, err = r.read(ctx, next, maxManifest); err != nil {
			return desc, doc, fmt.Errorf("manifest: %w", err)
		}
		desc = next
	}
	return desc, document{}, fmt.Errorf("%w: there is no end to its indexes", ErrInvalid)
}

// root returns what the reference names, from the cache if that is certain.
func (r *resolver) root(ctx context.Context) (descriptor, []byte, error) {
	ref := r.source.reference()
	if ref.Kind == Registry && ref.Digest != "" {
		if info, err := r.opts.Cache.Stat(blob.Digest(ref.Digest)); err == nil && info.Size <= maxManifest {
			desc := descriptor{Digest: ref.Digest, Size: info.Size}
			if data, err := r.cached(ctx, desc); err == nil {
				return desc, data, nil
			}
		}
	}
	desc, data, err := r.source.root(ctx)
	if err != nil {
		return desc, nil, err
	}
	digest, err := blob.ParseDigest(desc.Digest)
	if err != nil {
		return desc, nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, err := r.cached(ctx, desc); err == nil {
		return desc, data, nil
	}
	return desc, data, r.unwritten(desc, r.opts.Cache.Put(ctx, digest, data))
}

// read returns a part that is not large, and has it in the cache.
func (r *resolver) read(ctx context.Context, d descriptor, limit int64) ([]byte, error) {
	if err := d.check(limit); err != nil {
		return nil, err
	}
	silent := func(State, int64) {}
	for repaired := false; ; repaired = true {
		if err := r.part(ctx, d, silent); err != nil {
			return nil, err
		}
		data, err := r.cached(ctx, d)
		if !errors.Is(err, blob.ErrDamaged) || repaired {
			return data, err
		}
	}
}

// cached reads what is in the cache. If that is damaged it is removed, to be fetched again.
func (r *resolver) cached(ctx context.Context, d descriptor) ([]byte, error) {
	digest := blob.Digest(d.Digest)
	body, err := r.opts.Cache.Open(digest)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	if errors.Is(err, blob.ErrDamaged) {
		if err := r.opts.Cache.Verify(ctx, digest); err != nil {
			return nil, err
		}
	}
	return data, err
}
