package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
)

var (
	// ErrOther is wrapped by errors about a disk that has part of what is on it in another file.
	ErrOther = errors.New("the disk leads to another file")
	// ErrUnsupported is wrapped by errors about a disk that is encrypted, or of a kind that is not known.
	ErrUnsupported = errors.New("the disk is not understood")
)

// IsDisk tells whether a file begins as a disk does.
func IsDisk(r io.ReaderAt) bool {
	head := make([]byte, len(magic))
	_, err := r.ReadAt(head, 0)
	return err == nil && string(head) == magic
}

// CheckAlone fails with ErrOther unless the disk at path has all that is on it in that one file: who
// made it may have had it lead to any other file of this host. It returns the size in bytes of what a
// guest sees of the disk. Other errors wrap ErrFormat or ErrUnsupported if the disk is to blame.
func CheckAlone(path string) (size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("read disk's header: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read from
	if size, err = checkAlone(f); err != nil {
		return 0, fmt.Errorf("read disk's header: %s: %w", path, err)
	}
	return size, nil
}

// oldVersion is that of disks whose header has no features.
const oldVersion = 2

// The features of a disk that a reader must know: its data is elsewhere, and those that need nothing
// but the file: it was not closed, it is corrupt, its compression is said, and its clusters have parts.
const (
	externalData = 1 << 2
	ownFeatures  = 1<<0 | 1<<1 | 1<<3 | 1<<4
)

func checkAlone(r io.ReaderAt) (int64, error) {
	var head [80]byte
	if n, err := r.ReadAt(head[:], 0); errors.Is(err, io.EOF) && n < len(head) {
		return 0, ErrFormat
	} else if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	be := binary.BigEndian
	size, features := be.Uint64(head[24:]), uint64(0)
	switch {
	case string(head[:4]) != magic:
		return 0, ErrFormat
	case be.Uint32(head[4:]) == version:
		features = be.Uint64(head[72:])
	case be.Uint32(head[4:]) != oldVersion:
		return 0, fmt.Errorf("%w: it has version %d", ErrFormat, be.Uint32(head[4:]))
	}
	switch {
	case be.Uint64(head[8:]) != 0:
		return 0, fmt.Errorf("%w, which it is an overlay on", ErrOther)
	case features&externalData != 0:
		return 0, fmt.Errorf("%w, which has its data", ErrOther)
	case be.Uint32(head[32:]) != 0:
		return 0, fmt.Errorf("%w: it is encrypted", ErrUnsupported)
	case features&^ownFeatures != 0:
		return 0, fmt.Errorf("%w: it has the features %#x", ErrUnsupported, features)
	case size > math.MaxInt64:
		return 0, fmt.Errorf("%w: it has %d bytes", ErrFormat, size)
	}
	return int64(size), nil
}
