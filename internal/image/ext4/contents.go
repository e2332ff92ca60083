package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
)

// File is what a regular file has in it. It is a Sparse.
type File struct {
	reader  *Reader
	size    int64
	inline  io.ReaderAt // nil: in blocks
	mapping mapping
	at      int64
}

var _ Sparse = (*File)(nil)

// Open opens a regular file.
func (r *Reader) Open(n *Node) (*File, error) {
	if n.kind() != TypeRegular {
		return nil, fmt.Errorf("open inode %d: %w", n.Inode, fs.ErrInvalid)
	}
	return r.contents(n), nil
}

func (r *Reader) contents(n *Node) *File {
	f := &File{reader: r, size: n.Size, mapping: mapping{reader: r, root: n.data, extents: n.flags&flagExtents != 0}}
	if n.flags&flagInline != 0 {
		// What neither the inode nor the attribute has is zero.
		f.inline = bytes.NewReader(append(n.data[:len(n.data):len(n.data)], n.inline...))
	}
	return f
}

// Size returns how many bytes it has.
func (f *File) Size() int64 { return f.size }

// Close does nothing.
func (f *File) Close() error { return nil }

// Read is io.Reader's.
func (f *File) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.at)
	f.at += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// ReadAt is io.ReaderAt's, for one goroutine at a time.
func (f *File) ReadAt(p []byte, at int64) (int, error) {
	if at < 0 {
		return 0, fs.ErrInvalid
	}
	if at >= f.size {
		return 0, io.EOF
	}
	var end error
	if rest := f.size - at; int64(len(p)) > rest {
		p, end = p[:rest], io.EOF
	}
	if f.inline != nil {
		n, err := f.inline.ReadAt(p, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
		clear(p[n:])
		return len(p), end
	}
	for n := 0; n < len(p); {
		part, err := f.readRun(p[n:], at+int64(n))
		if err != nil {
			return n, err
		}
		n += part
	}
	return len(p), end
}

// readRun reads what is in one piece.
func (f *File) readRun(p []byte, at int64) (int, error) {
	block, offset := uint64(at)/f.reader.blockSize, uint64(at)%f.reader.blockSize
	found, err := f.mapping.find(block)
	if err != nil {
		return 0, err
	}
	p = p[:min(uint64(len(p)), found.count*f.reader.blockSize-offset)]
	if found.physical == 0 {
		clear(p)
		return len(p), nil
	}
	return len(p), f.reader.readAt(p, found.physical*f.reader.blockSize+offset)
}

// maxHoles is over how many holes in a row NextData goes at once. A sound file has one.
const maxHoles = 1024

// NextData is Sparse's.
func (f *File) NextData(at int64) (int64, error) {
	if f.inline != nil {
		return at, nil
	}
	for holes := 0; at < f.size; holes++ {
		block := uint64(at) / f.reader.blockSize
		found, err := f.mapping.find(block)
		if err != nil {
			return 0, err
		}
		if found.physical != 0 || holes == maxHoles {
			return at, nil
		}
		at = int64((block + found.count) * f.reader.blockSize)
	}
	return math.MaxInt64, nil
}
