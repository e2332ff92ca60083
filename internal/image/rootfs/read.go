package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"path"
)

// source is a layer that was read, and its digest, which it must have again.
type source struct {
	Layer
	digest string
}

// Read reads layers and returns what they make together, the first being the lowest. No
// contents of files are kept. Progress is told how many bytes of the layers, as they are
// stored, were read; it may be nil. Errors wrap ErrLayer, ErrDigest or ErrTooLarge if the
// layers are to blame.
func Read(ctx context.Context, layers []Layer, limits Limits, progress func(done int64)) (*Tree, error) {
	t := newTree(limits)
	count := &counter{report: progress}
	entries := 0
	for i, l := range layers {
		t.layers = append(t.layers, source{Layer: l, digest: l.DiffID})
		n, err := t.readLayer(ctx, i+1, t.limits.Entries-entries, count)
		if err != nil {
			return nil, err
		}
		entries += n
	}
	return t, nil
}

// readLayer applies a layer of at most so many entries and returns how many there were.
func (t *Tree) readLayer(ctx context.Context, layer, most int, count *counter) (entries int, err error) {
	source := &t.layers[layer-1]
	r, err := openLayer(ctx, source, t.limits.Bytes, count)
	if err != nil {
		return 0, err
	}
	defer r.close()
	for ; ; entries++ {
		h, err := r.next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return 0, err
		}
		if entries == most {
			return 0, r.failed(tooLarge("there are more than %d entries", t.limits.Entries))
		}
		n, err := t.apply(h, layer, entries)
		if err != nil {
			return 0, r.failed(err)
		}
		if n == nil {
			continue
		}
		if err := t.keep(h, n, r); err != nil {
			return 0, err
		}
	}
	source.digest, err = r.finish()
	return entries, err
}

// What is kept of a layer as it passes by: who wants to know what the image is looks into
// these files, and would else have to read the layer again.
const (
	maxKept    = 64 << 10 // bytes in a file
	maxAllKept = 4 << 20
	keptDir    = "/etc"
	keptFile   = "/usr/lib/os-release"
)

func (t *Tree) keep(h *tar.Header, n *inode, r *layerReader) error {
	name := path.Clean("/" + h.Name)
	if n.size > maxKept || int(n.size) > maxAllKept-t.keeps || path.Dir(name) != keptDir && name != keptFile {
		return nil
	}
	data := make([]byte, n.size)
	if err := r.read(data); err != nil {
		return err
	}
	t.keeps += len(data)
	t.kept[n] = data
	return nil
}
