package wire

import (
	"errors"
	"io"
	"sync"
)

const (
	// smallSize is what a connection needs while little is sent: thousands may be idle.
	smallSize = 4 << 10
	// bigSize is what it needs while much is.
	bigSize = 64 << 10
)

// Buffers are what streams are copied with. Its zero value is ready; its methods may be
// called concurrently.
type Buffers struct{ small, big sync.Pool }

// Copy copies until from ends. It uses a big buffer only for as long as much is sent.
func (b *Buffers) Copy(to io.Writer, from io.Reader) error {
	pool, size := &b.small, smallSize
	buf := take(pool, size)
	defer func() { pool.Put(buf) }()
	for {
		n, err := from.Read(*buf)
		if n > 0 {
			if _, err := to.Write((*buf)[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		other, otherSize := pool, size
		switch {
		case n == smallSize && size == smallSize:
			other, otherSize = &b.big, bigSize
		case n < smallSize && size == bigSize:
			other, otherSize = &b.small, smallSize
		}
		if other != pool {
			pool.Put(buf)
			pool, size = other, otherSize
			buf = take(pool, size)
		}
	}
}

func take(pool *sync.Pool, size int) *[]byte {
	if buf, ok := pool.Get().(*[]byte); ok {
		return buf
	}
	buf := make([]byte, size)
	return &buf
}
