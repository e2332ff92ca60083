package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/smolvm/smolvm/internal/oci/blob"
	"golang.org/x/sys/unix"
)

// What tools call an image in a layout.
const (
	refName        = "org.opencontainers.image.ref.name"
	containerdName = "io.containerd.image.name"
)

// layout is a source: files in OCI image layout.
type layout struct {
	ref   Reference
	files files
	index document
	want  platform
}

// newLayout reads the index of a layout. It closes the files if it fails.
func newLayout(ref Reference, wanted platform, f files) (source, error) {
	l := &layout{ref: ref, files: f, want: wanted}
	if err := l.readIndex(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

func (l *layout) readIndex() error {
	data, err := readFile(l.files, "index.json", maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is no OCI image layout: it has no index.json", ErrInvalid, l.ref.Path)
	}
	if err != nil {
		return err
	}
	// Some tools leave the version out here.
	if err := json.Unmarshal(data, &l.index); err != nil {
		return fmt.Errorf("%w: index.json is malformed: %s", ErrInvalid, clean(err.Error()))
	}
	return nil
}

func (l *layout) reference() Reference { return l.ref }

func (l *layout) Close() error { return l.files.Close() }

// root finds the image that the reference means.
func (l *layout) root(ctx context.Context) (descriptor, []byte, error) {
	desc, err := l.find()
	if err != nil {
		return descriptor{}, nil, err
	}
	if l.ref.Tag == "" && l.ref.Digest == "" {
		l.ref.Tag = nameOf(desc)
	}
	if err := desc.check(maxManifest); err != nil {
		return descriptor{}, nil, err
	}
	body, _, err := l.open(ctx, desc, 0)
	if err != nil {
		return descriptor{}, nil, err
	}
	defer body.Close()
	data, err := readBounded(body, maxManifest)
	if err != nil {
		return descriptor{}, nil, fmt.Errorf("read manifest: %w", err)
	}
	return desc, data, nil
}

// nameOf is what a layout calls an image, or empty.
func nameOf(d descriptor) string {
	for _, name := range []string{d.Annotations[containerdName], d.Annotations[refName]} {
		if name != "" && clean(name) == name {
			return name
		}
	}
	return ""
}

func (l *layout) find() (descriptor, error) {
	if digest := l.ref.Digest; digest != "" {
		for _, d := range l.index.Manifests {
			if d.Digest == digest {
				return d, nil
			}
		}
		// It may be part of another. What it is, it says itself.
		file, size, err := l.files.open(blobPath(digest))
		if err != nil {
			return descriptor{}, l.missing(err)
		}
		return descriptor{Digest: digest, Size: size}, file.Close()
	}
	candidates := l.index.Manifests
	if tag := l.ref.Tag; tag != "" {
		candidates = slices.DeleteFunc(slices.Clone(candidates), func(d descriptor) bool { return !isNamed(d, tag) })
	}
	switch {
	case len(candidates) == 1:
		return candidates[0], nil
	case len(candidates) == 0:
		return descriptor{}, l.missing(nil)
	}
	// They may be the same for several platforms.
	if !slices.ContainsFunc(candidates, func(d descriptor) bool { return d.Platform == nil || nameOf(d) != nameOf(candidates[0]) }) {
		return l.want.choose(candidates)
	}
	return descriptor{}, fmt.Errorf("%w is meant for certain: %s has several; say one of: %s", ErrNotFound, l.ref.Path, l.names())
}

// isNamed tells whether the layout gives the image a name: the whole of it, or its tag.
func isNamed(d descriptor, name string) bool {
	for _, has := range []string{d.Annotations[refName], d.Annotations[containerdName]} {
		if has == name || strings.HasSuffix(has, ":"+name) {
			return true
		}
	}
	return false
}

func (l *layout) missing(err error) error {
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	what := l.ref.Digest
	if what == "" {
		what = l.ref.Tag
	}
	if names := l.names(); names != "" {
		return fmt.Errorf("%w %s in %s; it has: %s", ErrNotFound, what, l.ref.Path, names)
	}
	return fmt.Errorf("%w %s in %s; what it has is not named", ErrNotFound, what, l.ref.Path)
}

// names are those of the images there, for people to choose from.
func (l *layout) names() string {
	const shown = 20
	var names []string
	for _, d := range l.index.Manifests {
		name := nameOf(d)
		if name == "" && d.Digest != "" {
			name = "@" + clean(d.Digest)
		}
		if !slices.Contains(names, name) && len(names) < shown {
			names = append(names, clean(name))
		}
	}
	return strings.Join(names, ", ")
}

// blobPath is where a layout has a blob. The digest is well-formed.
func blobPath(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

func (l *layout) open(_ context.Context, d descriptor, offset int64) (io.ReadCloser, int64, error) {
	if _, err := blob.ParseDigest(d.Digest); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	body, start, err := openAt(l.files, blobPath(d.Digest), d.Size, offset)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("%w: %s is not in %s", ErrInvalid, d.Digest, l.ref.Path)
	}
	return body, start, err
}

// directory has the files of a directory. Where links in it lead is the business of whom it
// belongs to: what is there is read with the caller's rights, and must match its digest.
type directory string

func (d directory) open(name string) (io.ReadSeekCloser, int64, error) {
	// It must not wait for who writes to a pipe.
	file, err := os.OpenFile(filepath.Join(string(d), filepath.FromSlash(name)), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is no file", ErrInvalid, file.Name())
	}
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, info.Size(), nil
}

func (directory) Close() error { return nil }
