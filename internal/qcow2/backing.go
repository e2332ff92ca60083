package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Backing returns the path of the file that the disk at path is an overlay on, empty if it is
// none.
func Backing(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read disk's header: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read from
	backing, err := decodeBacking(f)
	if err != nil {
		return "", fmt.Errorf("read disk's header: %s: %w", path, err)
	}
	return backing, nil
}

// ErrFormat is wrapped by errors about a file that is no disk of QEMU's format.
var ErrFormat = errors.New("not in qcow2 format")

func decodeBacking(r io.ReaderAt) (string, error) {
	var head [20]byte
	if _, err := r.ReadAt(head[:], 0); errors.Is(err, io.EOF) {
		return "", ErrFormat
	} else if err != nil {
		return "", err
	}
	at, length := binary.BigEndian.Uint64(head[8:]), binary.BigEndian.Uint32(head[16:])
	switch {
	case string(head[:4]) != magic:
		return "", ErrFormat
	case at == 0:
		return "", nil
	case at > clusterSize || length > maxBackingName:
		return "", fmt.Errorf("%w: the name of what it is an overlay on is at %d, %d bytes long", ErrFormat, at, length)
	}
	name := make([]byte, length)
	if _, err := r.ReadAt(name, int64(at)); errors.Is(err, io.EOF) {
		return "", ErrFormat
	} else if err != nil {
		return "", err
	}
	return string(name), nil
}
