package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/smolvm/smolvm/internal/oci/blob"
)

// dockerArchive is a source: files as docker save writes them, old versions and new. The manifest
// of its image is ours: it has none, or one that names files that were left out.
type dockerArchive struct {
	ref      Reference
	files    files
	saved    savedImage
	manifest []byte
	paths    map[string]string // of the parts, by digest
}

// savedImage is an image in manifest.json, the list of all in the archive.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// newDockerArchive finds the image that is meant. It closes the files if it fails.
func newDockerArchive(ctx context.Context, ref Reference, f files) (source, error) {
	a := &dockerArchive{ref: ref, files: f, paths: map[string]string{}}
	err := a.find()
	if err == nil {
		err = a.describe(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return a, nil
}

func (a *dockerArchive) reference() Reference { return a.ref }

// Close closes the files.
func (a *dockerArchive) Close() error { return a.files.Close() }

// find reads the list of images.
func (a *dockerArchive) find() error {
	data, err := readFile(a.files, "manifest.json", maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s was not written by docker save: it has no manifest.json; if it is in OCI image layout, "+
			"say oci-archive:FILE, and if it is a root filesystem, tar:FILE", ErrInvalid, a.ref.Path)
	}
	if err != nil {
		return err
	}
	var images []savedImage
	if err := json.Unmarshal(data, &images); err != nil {
		return fmt.Errorf("%w: manifest.json is malformed: %s", ErrInvalid, clean(err.Error()))
	}
	if a.ref.Name == "" {
		if len(images) != 1 {
			return fmt.Errorf("%w is meant for certain: %s has %d; say one of: %s", ErrNotFound, a.ref.Path, len(images), savedNames(images))
		}
		a.saved = images[0]
		a.adoptName()
		return nil
	}
	for _, image := range images {
		for _, name := range image.RepoTags {
			if ref, err := parseName(name); err == nil && ref.Host == a.ref.Host && ref.Name == a.ref.Name && ref.Tag == a.ref.Tag {
				a.saved = image
				return nil
			}
		}
	}
	return fmt.Errorf("%w %s in %s; it has: %s", ErrNotFound, a.ref.Familiar(), a.ref.Path, savedNames(images))
}

// adoptName names the image as it was when it was saved.
func (a *dockerArchive) adoptName() {
	for _, name := range a.saved.RepoTags {
		if ref, err := parseName(name); err == nil && ref.Digest == "" {
			a.ref.Host, a.ref.Name, a.ref.Tag = ref.Host, ref.Name, ref.Tag
			return
		}
	}
}

func savedNames(images []savedImage) string {
	const shown = 20
	var names []string
	for _, image := range images {
		for _, name := range image.RepoTags {
			if len(names) < shown {
				names = append(names, clean(name))
			}
		}
	}
	if len(names) == 0 {
		return "nothing that has a name"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// describe makes the image's manifest.
func (a *dockerArchive) describe(ctx context.Context) error {
	if len(a.saved.Layers) > maxLayers {
		return fmt.Errorf("%w: it has %d layers, more than %d", ErrTooLarge, len(a.saved.Layers), maxLayers)
	}
	config, err := a.measure(ctx, a.saved.Config)
	if err != nil {
		return err
	}
	config.MediaType = types.OCIConfigJSON
	doc := document{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: &config}
	for _, path := range a.saved.Layers {
		layer, err := a.measure(ctx, path)
		if err != nil {
			return err
		}
		doc.Layers = append(doc.Layers, layer)
	}
	if err := a.compare(doc); err != nil {
		return err
	}
	a.manifest, err = json.Marshal(doc)
	return err
}

// compare checks that the layers are those of which the configuration speaks, as far as that can
// be told of those that are compressed.
func (a *dockerArchive) compare(doc document) error {
	data, err := readFile(a.files, a.saved.Config, maxConfig)
	if err != nil {
		return err
	}
	config, err := parseConfig(data, len(doc.Layers))
	if err != nil {
		return err
	}
	for i, layer := range doc.Layers {
		id := config.RootFS.DiffIDs[i]
		if layer.MediaType == types.OCIUncompressedLayer && id != layer.Digest && strings.HasPrefix(id, "sha256:") {
			return fmt.Errorf("%w: layer %d is not the one of which its configuration speaks", ErrInvalid, i+1)
		}
	}
	return nil
}

// measure makes the descriptor of a file, as a layer.
func (a *dockerArchive) measure(ctx context.Context, path string) (descriptor, error) {
	file, size, err := a.files.open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return descriptor{}, fmt.Errorf("%w: %q is not in %s", ErrInvalid, clean(path), a.ref.Path)
	}
	if err != nil {
		return descriptor{}, err
	}
	defer file.Close() //nolint:errcheck // only read
	magic := make([]byte, 4)
	n, err := io.ReadFull(file, magic)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return descriptor{}, fmt.Errorf("read %q: %w", clean(path), err)
	}
	d := descriptor{MediaType: types.OCIUncompressedLayer, Size: size}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		d.MediaType = types.OCILayer
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d.MediaType = types.OCILayerZStd
	}
	sum := sha256.New()
	sum.Write(magic[:n])
	if _, err := io.Copy(sum, &cancelled{ctx, file}); err != nil {
		return descriptor{}, fmt.Errorf("read %q: %w", clean(path), err)
	}
	d.Digest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	a.paths[d.Digest] = path
	return d, nil
}

func (a *dockerArchive) root(context.Context) (descriptor, []byte, error) {
	return descriptor{
		MediaType: types.OCIManifestSchema1,
		Digest:    string(blob.Of(a.manifest)),
		Size:      int64(len(a.manifest)),
	}, a.manifest, nil
}

func (a *dockerArchive) open(_ context.Context, d descriptor, offset int64) (io.ReadCloser, int64, error) {
	path, found := a.paths[d.Digest]
	if !found {
		return nil, 0, fmt.Errorf("%w: %s is not in %s", ErrInvalid, d.Digest, a.ref.Path)
	}
	return openAt(a.files, path, d.Size, offset)
}
