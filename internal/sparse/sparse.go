// Package sparse reads files that are nearly nothing but holes.
package sparse

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// blockSize is how much of a file is looked at at once.
const blockSize = 64 << 10

// Hash adds what a file holds: its length, and each block that is not all zero with where it is.
// Holes are not read, and a block of zeros counts as one, which it may become.
func Hash(ctx context.Context, sum hash.Hash, file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	block, zero := make([]byte, blockSize), make([]byte, blockSize)
	number := func(n int64) { sum.Write(binary.LittleEndian.AppendUint64(nil, uint64(n))) }
	number(info.Size())
	for at := int64(0); at < info.Size(); at += blockSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := unix.Seek(int(file.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to the end
		} else if err != nil {
			return fmt.Errorf("find data in %s: %w", file.Name(), err)
		}
		at = data - data%blockSize
		n, err := file.ReadAt(block, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !bytes.Equal(block[:n], zero[:n]) {
			number(at)
			sum.Write(block[:n])
		}
	}
	return nil
}
