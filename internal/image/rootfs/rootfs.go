// Package rootfs makes root filesystems of the layers of an OCI image, or of a directory.
// What is in them is merged into a [Tree] in memory, of metadata alone, and then written
// as a filesystem; contents go straight from the layers into it. Nothing is ever unpacked
// on the host, so no privilege is needed, and no name or link in a layer can lead anywhere
// but within the tree.
//
// Layers are from anyone: nothing in them is believed, and what they cost is bounded.
package rootfs

import (
	"errors"
	"fmt"
	"io"
)

var (
	// ErrLayer is wrapped by errors that say that a layer is malformed, or hostile.
	ErrLayer = errors.New("malformed or hostile layer")
	// ErrDigest is wrapped when a layer is not the one that it should be.
	ErrDigest = errors.New("layer has another digest")
	// ErrTooLarge is wrapped when there is more than the limits, or the disk, have room for.
	ErrTooLarge = errors.New("image is too large")
)

// Layer is a part of an image.
type Layer struct {
	// Open returns the layer as it is stored: a tar archive that is plain or compressed by
	// gzip, zstd or xz, which its first bytes tell. It is opened once to be read, and again
	// when the tree is written or a file is read from it, and must then be the same. Close
	// may be called during a Read, which it ends.
	Open func() (io.ReadCloser, error)
	// DiffID is the digest of the layer that is not compressed, as "sha256:" and 64
	// hexadecimal digits. It is checked, unless it is empty.
	DiffID string
	// Name is what errors call the layer.
	Name string
}

// Limits bound what a tree costs. A zero means the default.
type Limits struct {
	// Bytes is how many all files have together, holes included: those of any one layer,
	// and those in the tree at any time. The default is 64 GiB.
	Bytes int64
	// Entries is how many there are in all layers together, and how many names in the
	// tree. The default is 1 Mi, which take a few hundred MiB of memory.
	Entries int
}

const (
	defaultBytes   = 64 << 30
	defaultEntries = 1 << 20
)

func (l Limits) withDefaults() Limits {
	if l.Bytes == 0 {
		l.Bytes = defaultBytes
	}
	if l.Entries == 0 {
		l.Entries = defaultEntries
	}
	return l
}

// The bounds of paths, in bytes but for the last.
const (
	maxPath  = 4096
	maxDepth = 2048 // directories in one another
)

// malformed is an ErrLayer that says why.
func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrLayer, fmt.Errorf(format, args...))
}

// tooLarge is an ErrTooLarge that says why.
func tooLarge(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrTooLarge, fmt.Errorf(format, args...))
}

// shown is how a name from a layer, which may be anything, is put into errors.
const shown = "%.200q"
