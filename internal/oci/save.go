package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Write writes the image, under a name in a registry, to an archive: OCIArchive or DockerArchive,
// which docker load reads. The same image makes the same archive. Done is told how many bytes of
// the layer are written; it may be nil.
func (p *Package) Write(ctx context.Context, w io.Writer, kind Kind, ref Reference, done func(int64)) error {
	parts, err := p.parts(kind, ref)
	if err != nil {
		return err
	}
	out := tar.NewWriter(w)
	for _, part := range parts {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: part.name, Mode: 0o644, Size: part.size}
		if part.size == 0 {
			h = &tar.Header{Typeflag: tar.TypeDir, Name: part.name, Mode: 0o755}
		}
		if err := out.WriteHeader(h); err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
		if part.size == 0 {
			continue
		}
		r := &told{Reader: &cancelled{ctx, part.open()}}
		if part.layer {
			r.tell = done
		}
		if _, err := io.Copy(out, r); err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
	}
	if err := out.Close(); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}

// part is a file of an archive, or a directory, which has no bytes.
type part struct {
	name  string
	size  int64
	layer bool
	open  func() io.Reader
}

func partOf(name string, data []byte) part {
	return part{name: name, size: int64(len(data)), open: func() io.Reader { return bytes.NewReader(data) }}
}

func (p *Package) parts(kind Kind, ref Reference) ([]part, error) {
	config, manifest := p.describe(types.OCIConfigJSON, p.config), p.describe(types.OCIManifestSchema1, p.manifest)
	name := ref.Host + "/" + ref.Name + ":" + ref.Tag
	layer := part{size: p.layer.size, layer: true, open: func() io.Reader { return p.layer.reader() }}
	if kind == DockerArchive {
		layer.name = strings.TrimPrefix(p.layer.diffID, "sha256:") + "/layer.tar"
		file := strings.TrimPrefix(config.Digest, "sha256:") + ".json"
		list, err := json.Marshal([]savedImage{{Config: file, RepoTags: []string{ref.Familiar()}, Layers: []string{layer.name}}})
		return []part{partOf("manifest.json", list), partOf(file, p.config), layer}, err
	}
	if kind != OCIArchive {
		return nil, fmt.Errorf("images are not written to archives of the kind %q", kind)
	}
	layer.name = blobPath(p.layer.digest)
	manifest.Platform = &platform{}
	if err := json.Unmarshal(p.config, manifest.Platform); err != nil {
		return nil, err
	}
	manifest.Annotations = map[string]string{containerdName: name, refName: ref.Tag}
	index, err := json.Marshal(document{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []descriptor{manifest}})
	return []part{
		partOf("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)), partOf("index.json", index),
		{name: "blobs/"}, {name: "blobs/sha256/"},
		partOf(blobPath(manifest.Digest), p.manifest), partOf(blobPath(config.Digest), p.config), layer,
	}, err
}

// ListArchive returns references to the images in an archive, an OCI layout or what docker save
// wrote, which its contents tell. Each is listed with each of its names; one that is alone may
// have none. It fails with ErrInvalid, ErrTooLarge or ErrNotFound if there is none.
func ListArchive(ctx context.Context, path string, opts Options) ([]Reference, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	a, err := openArchive(ctx, path, opts)
	if err != nil {
		return nil, err
	}
	defer a.Close() //nolint:errcheck // only read
	refs, err := listSaved(a, path)
	if errors.Is(err, fs.ErrNotExist) {
		refs, err = listLayout(a, path)
	}
	switch {
	case err != nil:
		return nil, err
	case len(refs) == 0:
		return nil, fmt.Errorf("%w in %s that has a name", ErrNotFound, path)
	}
	return refs, nil
}

// listSaved lists what docker save wrote. The error is fs.ErrNotExist if it did not write this.
func listSaved(f files, path string) ([]Reference, error) {
	data, err := readFile(f, "manifest.json", maxManifest)
	if err != nil {
		return nil, err
	}
	var images []savedImage
	if err := json.Unmarshal(data, &images); err != nil {
		return nil, fmt.Errorf("%w: manifest.json is malformed: %s", ErrInvalid, clean(err.Error()))
	}
	var refs []Reference
	for _, image := range images {
		for _, name := range image.RepoTags {
			if ref, err := parseName(name); err == nil && ref.Digest == "" {
				ref.Kind, ref.Path = DockerArchive, path
				refs = append(refs, ref)
			}
		}
	}
	if len(refs) == 0 && len(images) == 1 {
		refs = []Reference{{Kind: DockerArchive, Path: path}}
	}
	return refs, nil
}

func listLayout(f files, path string) ([]Reference, error) {
	l := &layout{ref: Reference{Kind: OCIArchive, Path: path}, files: f}
	if err := l.readIndex(); err != nil {
		return nil, err
	}
	var refs []Reference
	for _, d := range l.index.Manifests {
		if name := nameOf(d); name != "" {
			refs = append(refs, Reference{Kind: OCIArchive, Path: path, Tag: name})
		}
	}
	if len(refs) == 0 && len(l.index.Manifests) == 1 {
		refs = []Reference{l.ref}
	}
	// The same name may stand for several platforms.
	slices.SortFunc(refs, func(a, b Reference) int { return strings.Compare(a.Tag, b.Tag) })
	return slices.Compact(refs), nil
}
