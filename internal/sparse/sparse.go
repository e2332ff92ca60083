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
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// blockSize is how much of a file is looked at at once.
const blockSize = 64 << 10

// NextData returns where data begins in a file, from an offset on: the offset itself if there is no
// hole, and math.MaxInt64 if there is nothing but a hole up to the end. The error is unix.EINVAL
// where the filesystem does not know. It moves the file's offset.
func NextData(file *os.File, offset int64) (int64, error) {
	at, err := unix.Seek(int(file.Fd()), offset, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return math.MaxInt64, nil
	}
	return at, err
}

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
		data, err := NextData(file, at)
		if err != nil {
			return fmt.Errorf("find data in %s: %w", file.Name(), err)
		}
		if data >= info.Size() {
			break
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

// Copy copies so many bytes of a file from an offset on to the beginning of another, which has only
// holes yet. Holes and blocks of zeros stay holes, and so does what the file has less.
func Copy(ctx context.Context, to io.WriterAt, from *os.File, offset, size int64) error {
	block, zero := make([]byte, blockSize), make([]byte, blockSize)
	for at := int64(0); at < size; at += blockSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := NextData(from, offset+at)
		switch {
		case errors.Is(err, unix.EINVAL): // the filesystem does not know
		case err != nil:
			return fmt.Errorf("find data in %s: %w", from.Name(), err)
		case data-offset >= size:
			return nil
		default:
			at = data - offset - (data-offset)%blockSize
		}
		n, err := from.ReadAt(block[:min(blockSize, size-at)], offset+at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if bytes.Equal(block[:n], zero[:n]) {
			continue
		}
		if _, err := to.WriteAt(block[:n], at); err != nil {
			return err
		}
	}
	return nil
}
