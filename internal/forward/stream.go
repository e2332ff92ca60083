package forward

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// join copies both ways until both directions have ended. An orderly end of one
// direction leaves the other open; a reset ends both.
func (s *server) join(client, guest Conn) {
	var wg sync.WaitGroup
	wg.Go(func() { pass(guest, client, &s.meter.toGuest, s.buffers) })
	pass(client, guest, &s.meter.fromGuest, s.buffers)
	wg.Wait()
}

// pass copies from src to dst and hands on how src ended.
func pass(dst, src Conn, count *atomic.Int64, b *buffers) {
	if err := copyStream(dst, src, count, b); err != nil {
		abort(dst)
		abort(src)
		return
	}
	// This fails if dst has ended by itself. The other direction will notice, and
	// what is still on its way to src must not be lost by ending it here.
	_ = dst.CloseWrite()
}

// copyStream copies until the end of src and counts what it has copied: between
// sockets without leaving the kernel, else through a block.
func copyStream(dst, src Conn, count *atomic.Int64, b *buffers) error {
	dstTCP, ok := dst.(*net.TCPConn)
	if srcTCP, both := src.(*net.TCPConn); ok && both {
		if err := splice(dstTCP, srcTCP, count, b); !errors.Is(err, errNoPipe) {
			return err
		}
	}
	from, err := newSource(src, b)
	if err != nil {
		return err
	}
	for {
		p, err := from.next()
		if err != nil {
			from.release()
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		n, err := dst.Write(p)
		from.release()
		count.Add(int64(n))
		if err != nil {
			return err
		}
	}
}
