package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
)

// holeSize is the smallest hole, in bytes, and where holes begin and end: a file does not
// fall into more parts than its length has of these.
const holeSize = 8 * BlockSize

// chunkSize is how much of a file is read at once.
const chunkSize = 32 * holeSize

// Sparse is a reader that knows of holes in what it reads. It is read by ReadAt alone.
type Sparse interface {
	io.ReaderAt
	// NextData returns where data begins, from an offset on: the offset itself if there is
	// no hole, and the size of the file or more if there is nothing else.
	NextData(offset int64) (int64, error)
}

// WriteFile writes a regular file of a size in bytes, all of which r must have: it fails
// with io.ErrUnexpectedEOF otherwise. What is beyond is not read. Zeros become holes
// where there are enough of them. If r is Sparse too, its holes are not read.
func (fs *Filesystem) WriteFile(ctx context.Context, i Inode, a Attributes, size int64, r io.Reader) error {
	if fs.failed != nil {
		return fs.failed
	}
	return fs.fail(fs.writeFile(ctx, i, &a, size, r))
}

func (fs *Filesystem) writeFile(ctx context.Context, i Inode, a *Attributes, size int64, r io.Reader) error {
	if size < 0 || size > MaxSize {
		return fmt.Errorf("write file: it has %d bytes", size)
	}
	if fs.chunk == nil {
		fs.chunk = make([]byte, chunkSize)
	}
	var e extents
	sparse, _ := r.(Sparse)
	for at := int64(0); at < size; at += chunkSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		if sparse != nil {
			next, err := sparse.NextData(at)
			if err != nil {
				return err
			}
			if at = next - next%holeSize; next >= size {
				break
			}
		}
		n := min(size-at, chunkSize)
		if err := readFull(r, sparse, fs.chunk[:n], at); err != nil {
			return err
		}
		if err := fs.appendData(&e, at, fs.chunk[:n]); err != nil {
			return err
		}
	}
	root, nodes, err := fs.writeExtents(&e)
	if err != nil {
		return err
	}
	return fs.writeInode(i, a, body{data: root, size: size, blocks: e.blocks + nodes, flags: flagExtents})
}

func readFull(r io.Reader, sparse Sparse, p []byte, at int64) error {
	if sparse != nil {
		r = io.NewSectionReader(sparse, at, int64(len(p)))
	}
	_, err := io.ReadFull(r, p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// appendData writes the next part of a file, at an offset where a hole may begin. It has
// room behind it up to the next block.
func (fs *Filesystem) appendData(e *extents, at int64, data []byte) error {
	whole := (len(data) + BlockSize - 1) / BlockSize * BlockSize
	clear(data[len(data):whole])
	data = data[:whole]
	for begin := 0; begin < whole; {
		end := begin
		for end < whole && !isZero(data[end:min(end+holeSize, whole)]) {
			end = min(end+holeSize, whole)
		}
		if err := fs.append(e, uint32((at+int64(begin))/BlockSize), data[begin:end]); err != nil {
			return err
		}
		begin = max(end, begin)
		for begin < whole && isZero(data[begin:min(begin+holeSize, whole)]) {
			begin = min(begin+holeSize, whole)
		}
	}
	return nil
}

func isZero(data []byte) bool {
	var zeros [holeSize]byte
	return bytes.Equal(data, zeros[:len(data)])
}
