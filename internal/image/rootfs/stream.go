package rootfs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// counter tells how many bytes were read of all layers.
type counter struct {
	report func(done int64)
	done   int64
}

func (c *counter) add(n int64) {
	c.done += n
	if c.report != nil && n > 0 {
		c.report(c.done)
	}
}

// readAhead decompresses a layer on a goroutine of its own, a little ahead of who reads it.
type readAhead struct {
	stored *stored
	full   chan block // closed at the end
	empty  chan []byte
	stop   context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended
	err    error         // why full was closed, if not for the end; written before it was

	current []byte
	rest    []byte
	ended   bool // whether full was seen closed
	counted int64
	count   *counter
}

// block is a part of the layer, and how much of it had been read, as stored.
type block struct {
	data   []byte
	stored int64
}

const (
	blockSize  = 256 << 10
	blockCount = 4
)

func newReadAhead(ctx context.Context, r io.ReadCloser, count *counter) *readAhead {
	ctx, stop := context.WithCancel(ctx)
	a := &readAhead{
		stored: &stored{ctx: ctx, r: r}, stop: stop, count: count,
		full: make(chan block, blockCount), empty: make(chan []byte, blockCount), done: make(chan struct{}),
	}
	for range blockCount {
		a.empty <- make([]byte, blockSize)
	}
	go func() {
		defer close(a.done)
		a.err = a.run(ctx)
		close(a.full)
	}()
	return a
}

func (a *readAhead) run(ctx context.Context) error {
	plain, release, err := decompress(a.stored)
	if err != nil {
		return err
	}
	defer release()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case data := <-a.empty:
			n, err := fill(plain, data[:blockSize])
			a.full <- block{data[:n], a.stored.read} // there is room for all blocks
			if errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
}

// fill is io.ReadFull, but for the error at the end, which is io.EOF.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		k, err = r.Read(p[n:])
		n += k
	}
	return n, err
}

func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.current != nil {
			a.empty <- a.current
			a.current = nil
		}
		block, open := <-a.full
		if !open {
			a.ended = true
			if a.err != nil {
				return 0, a.err
			}
			return 0, io.EOF
		}
		a.count.add(block.stored - a.counted)
		a.counted = block.stored
		a.current, a.rest = block.data, block.data
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// failure returns why no more could be read of the layer as it is stored, which is not the
// layer's fault.
func (a *readAhead) failure() error {
	if !a.ended {
		return nil
	}
	return a.stored.err
}

func (a *readAhead) close() {
	a.stop()
	a.stored.r.Close()
	<-a.done
}

// stored reads a layer as it is stored.
type stored struct {
	ctx  context.Context
	r    io.ReadCloser
	read int64
	err  error // the first, but for io.EOF
}

func (s *stored) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p)
	s.read += int64(n)
	if err != nil && !errors.Is(err, io.EOF) && s.err == nil {
		s.err = fmt.Errorf("read layer: %w", err)
	}
	return n, err
}

// maxWindow is how much a decompressor may have to remember, in bytes: as much as the zstd
// program allows unless it is told otherwise.
const maxWindow = 128 << 20

// decompress returns what a layer is when it is not compressed, and what to call when no
// more of it is read.
func decompress(r io.Reader) (plain io.Reader, release func(), err error) {
	buffered := bufio.NewReaderSize(r, blockSize)
	head, err := buffered.Peek(len(xzMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	nothing := func() {}
	switch {
	case isGzip(head):
		plain, err = gzip.NewReader(buffered)
		return plain, nothing, err
	case isZstd(head):
		decoder, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return windowed{decoder}, decoder.Close, nil
	case isXZ(head):
		return &xzReader{r: buffered}, nothing, nil
	}
	return buffered, nothing, nil
}

// isCompressed tells by its first bytes whether a layer is.
func isCompressed(head []byte) bool { return isGzip(head) || isZstd(head) || isXZ(head) }

func isGzip(head []byte) bool { return bytes.HasPrefix(head, []byte{0x1f, 0x8b}) }

func isXZ(head []byte) bool { return bytes.Equal(head, []byte(xzMagic)) }

// isZstd tells whether a frame of zstd begins here, even one that is not data.
func isZstd(head []byte) bool {
	skippable := len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18})
	return skippable || bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd})
}

// windowed says in the words of this package that a window is too large.
type windowed struct{ *zstd.Decoder }

func (w windowed) Read(p []byte) (int, error) {
	n, err := w.Decoder.Read(p)
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		err = errWindow
	}
	return n, err
}

var errWindow = tooLarge("it can be decompressed with more than %d bytes of memory only", maxWindow)
