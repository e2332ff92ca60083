package rootfs

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// xzReader decompresses the xz format. It reads what is around the compressed data itself,
// because that says how much memory is needed, and allows no more than maxWindow. Filters
// for programs are not known. The first error sticks.
type xzReader struct {
	r       *bufio.Reader
	started bool
	flags   [2]byte // of the stream; the second is how blocks are checked
	blocks  uint64
	block   *xzBlock
	err     error
}

// xzBlock is what is known of the block that is read.
type xzBlock struct {
	data  *lzma.Reader2
	input *countingReader
	sum   hash.Hash // nil: none
}

const (
	xzMagic       = "\xfd7zXZ\x00"
	xzFooterMagic = "YZ"
	xzAlignment   = 4
	lzma2Filter   = 0x21
	maxDictionary = 40 // as a header says it: 4 GiB
)

var errXZ = errors.New("xz data is malformed")

func (x *xzReader) Read(p []byte) (int, error) {
	for x.err == nil {
		if x.block == nil {
			x.err = x.next()
			continue
		}
		n, err := x.block.data.Read(p)
		if x.block.sum != nil {
			x.block.sum.Write(p[:n])
		}
		if errors.Is(err, io.EOF) {
			x.err = x.endBlock()
		} else if err != nil {
			x.err = err
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	return 0, x.err
}

// next goes on to the next block, be it in this stream or in another one behind it.
func (x *xzReader) next() error {
	if !x.started {
		return x.beginStream()
	}
	size, err := x.r.ReadByte()
	switch {
	case err != nil:
		return cut(err)
	case size == 0:
		return x.endStream()
	}
	header := make([]byte, (int(size)+1)*4)
	header[0] = size
	if _, err := io.ReadFull(x.r, header[1:]); err != nil {
		return cut(err)
	}
	capacity, err := xzDictionary(header)
	if err != nil {
		return err
	}
	b := &xzBlock{input: &countingReader{r: x.r}, sum: x.newSum()}
	if b.data, err = (lzma.Reader2Config{DictCap: capacity}).NewReader2(b.input); err != nil {
		return err
	}
	x.block = b
	x.blocks++
	return nil
}

// xzDictionary returns how many bytes a block wants to have remembered, which its header says.
func xzDictionary(header []byte) (int, error) {
	body, sum := header[:len(header)-4], header[len(header)-4:]
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(sum) {
		return 0, errXZ
	}
	const sizes, filters, reserved = 0xc0, 0x03, 0x3c
	flags := body[1]
	if flags&(filters|reserved) != 0 {
		return 0, fmt.Errorf("%w, or filtered", errXZ)
	}
	r := bytes.NewReader(body[2:])
	for bit := byte(0x40); bit != 0; bit <<= 1 { // the sizes, if they are known
		if flags&sizes&bit == 0 {
			continue
		}
		if _, err := binary.ReadUvarint(r); err != nil {
			return 0, errXZ
		}
	}
	var filter [3]byte // its ID, the length of what follows, the dictionary
	if _, err := io.ReadFull(r, filter[:]); err != nil || filter[0] != lzma2Filter || filter[1] != 1 || filter[2] > maxDictionary {
		return 0, fmt.Errorf("%w, or filtered", errXZ)
	}
	capacity := int64(2|filter[2]&1) << (filter[2]/2 + 11)
	if capacity > maxWindow {
		return 0, errWindow
	}
	return int(capacity), nil
}

// newSum returns how blocks are checked.
func (x *xzReader) newSum() hash.Hash {
	switch x.flags[1] {
	case 1:
		return littleEndian{crc32.NewIEEE()}
	case 4:
		return littleEndian{crc64.New(crc64.MakeTable(crc64.ECMA))}
	case 10:
		return sha256.New()
	}
	return nil
}

// littleEndian is a checksum with its lowest byte first.
type littleEndian struct{ hash.Hash }

func (l littleEndian) Sum(b []byte) []byte {
	sum := l.Hash.Sum(nil)
	for i := range sum {
		b = append(b, sum[len(sum)-1-i])
	}
	return b
}

// endBlock reads the padding and the checksum of a block.
func (x *xzReader) endBlock() error {
	b := x.block
	x.block = nil
	if err := x.padding(b.input.n); err != nil {
		return err
	}
	if b.sum == nil {
		return nil
	}
	sum := make([]byte, b.sum.Size())
	if _, err := io.ReadFull(x.r, sum); err != nil {
		return cut(err)
	}
	if !bytes.Equal(sum, b.sum.Sum(nil)) {
		return fmt.Errorf("%w: checksum is wrong", errXZ)
	}
	return nil
}

// padding reads zeros up to where a length is aligned.
func (x *xzReader) padding(length int64) error {
	for ; length%xzAlignment != 0; length++ {
		if c, err := x.r.ReadByte(); err != nil {
			return cut(err)
		} else if c != 0 {
			return errXZ
		}
	}
	return nil
}

// beginStream reads the header of a stream: the magic, flags and their checksum.
func (x *xzReader) beginStream() error {
	var header [12]byte
	if _, err := io.ReadFull(x.r, header[:]); err != nil {
		return cut(err)
	}
	x.flags = [2]byte(header[6:8])
	if string(header[:6]) != xzMagic || crc32.ChecksumIEEE(header[6:8]) != binary.LittleEndian.Uint32(header[8:]) {
		return errXZ
	}
	if x.flags != [2]byte{} && x.newSum() == nil || x.flags[0] != 0 {
		return fmt.Errorf("%w: blocks are checked in an unknown way", errXZ)
	}
	x.started, x.blocks = true, 0
	return nil
}

// endStream reads the index of a stream, whose first byte was read, and its footer. The
// error is io.EOF if no other stream follows.
func (x *xzReader) endStream() error {
	sum := crc32.NewIEEE()
	sum.Write([]byte{0})
	index := &countingReader{r: io.TeeReader(x.r, sum), n: 1}
	count, err := binary.ReadUvarint(index)
	if err != nil {
		return cut(err)
	}
	if count != x.blocks {
		return errXZ
	}
	for range 2 * count { // sizes of blocks
		if _, err := binary.ReadUvarint(index); err != nil {
			return cut(err)
		}
	}
	for index.n%xzAlignment != 0 {
		if c, err := index.ReadByte(); err != nil {
			return cut(err)
		} else if c != 0 {
			return errXZ
		}
	}
	// The checksum of the index; then that of the footer, the index's size, flags and magic.
	var end [16]byte
	if _, err := io.ReadFull(x.r, end[:]); err != nil {
		return cut(err)
	}
	if binary.LittleEndian.Uint32(end[:]) != sum.Sum32() || binary.LittleEndian.Uint32(end[4:]) != crc32.ChecksumIEEE(end[8:14]) ||
		int64(binary.LittleEndian.Uint32(end[8:]))*4 != index.n || [2]byte(end[12:14]) != x.flags || string(end[14:]) != xzFooterMagic {
		return errXZ
	}
	x.started = false
	for {
		next, err := x.r.Peek(xzAlignment)
		if len(next) == 0 && errors.Is(err, io.EOF) {
			return io.EOF
		} else if err != nil {
			return cut(err)
		}
		if !bytes.Equal(next, make([]byte, xzAlignment)) {
			return nil
		}
		if _, err := x.r.Discard(xzAlignment); err != nil {
			return err
		}
	}
}

// cut is an error from where there must be more.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// countingReader counts what is read.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *countingReader) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(c, b[:])
	return b[0], err
}
