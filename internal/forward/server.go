package forward

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	// dialTimeout bounds how long a client waits for the guest to accept.
	dialTimeout = 30 * time.Second
	// The pause after a failed accept (no file descriptors left, mostly) doubles from the
	// first to the last of these.
	firstAcceptPause = 5 * time.Millisecond
	lastAcceptPause  = time.Second
)

// server accepts connections on a reservation's listeners and carries them
// to the guest.
type server struct {
	reserved *reservation
	dial     func(context.Context) (Conn, error)
	log      *slog.Logger
	buffers  *sync.Pool // of newBuffers

	ctx    context.Context // ends when the server closes
	cancel context.CancelFunc
	wg     sync.WaitGroup // accept loops and connections

	mu    sync.Mutex
	open  map[Conn]struct{} // both ends of all connections
	ended bool
}

// serve starts a server, which owns the reservation from now on.
func serve(r *reservation, log *slog.Logger, buffers *sync.Pool, dial func(context.Context) (Conn, error)) *server {
	s := &server{reserved: r, dial: dial, log: log, buffers: buffers, open: make(map[Conn]struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, l := range r.listeners {
		s.wg.Go(func() { s.accept(l) })
	}
	return s
}

// close frees the port, resets all connections and returns when all is gone.
func (s *server) close() {
	s.cancel()
	s.reserved.close()
	s.mu.Lock()
	s.ended = true
	for c := range s.open {
		abort(c)
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *server) accept(l *net.TCPListener) {
	pause := firstAcceptPause
	for {
		conn, err := l.AcceptTCP()
		if err == nil {
			pause = firstAcceptPause
			s.wg.Go(func() { s.carry(conn) })
			continue
		}
		if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		s.log.Warn("could not accept a connection", "error", err, "pause", pause)
		select {
		case <-time.After(pause):
			pause = min(2*pause, lastAcceptPause)
		case <-s.ctx.Done():
			return
		}
	}
}

// carry connects one client to the guest until both have said all.
func (s *server) carry(client *net.TCPConn) {
	if !s.track(client) {
		return
	}
	defer s.untrack(client)
	ctx, cancel := context.WithTimeout(s.ctx, dialTimeout)
	guest, err := s.dial(ctx)
	cancel()
	if err != nil {
		s.log.Debug("could not connect to guest", "error", err)
		abort(client)
		return
	}
	if !s.track(guest) {
		abort(client)
		return
	}
	defer s.untrack(guest)
	join(client, guest, s.buffers)
}

// track notes an open connection, or ends it if the server has closed.
func (s *server) track(c Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		abort(c)
		return false
	}
	s.open[c] = struct{}{}
	return true
}

func (s *server) untrack(c Conn) {
	s.mu.Lock()
	delete(s.open, c)
	s.mu.Unlock()
	c.Close()
}

// abort closes a connection so that its other end sees a reset, not an
// orderly end, and nothing of it lingers in the kernel.
func abort(c Conn) {
	if l, ok := c.(interface{ SetLinger(seconds int) error }); ok {
		_ = l.SetLinger(0) // fails on a closed connection only
	}
	c.Close()
}

// join copies both ways until both directions have ended. An orderly end of one
// direction leaves the other open; a reset ends both.
func join(a, b Conn, buffers *sync.Pool) {
	var wg sync.WaitGroup
	wg.Go(func() { pass(a, b, buffers) })
	pass(b, a, buffers)
	wg.Wait()
}

// pass copies from src to dst and hands on how src ended.
func pass(dst, src Conn, buffers *sync.Pool) {
	if err := copyStream(dst, src, buffers); err != nil {
		abort(dst)
		abort(src)
		return
	}
	// This fails if dst has ended by itself. The other direction will notice, and
	// what is still on its way to src must not be lost by ending it here.
	_ = dst.CloseWrite()
}

// copyStream copies until the end of src: between sockets without leaving the
// kernel, else through a pooled buffer.
func copyStream(dst, src Conn, buffers *sync.Pool) error {
	_, dstTCP := dst.(*net.TCPConn)
	_, srcTCP := src.(*net.TCPConn)
	if dstTCP && srcTCP {
		_, err := io.Copy(dst, src)
		return err
	}
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	// The plain types hide methods that would bypass the buffer and allocate their own.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, *buffer)
	return err
}

// newBuffers makes a pool of what copyStream needs.
func newBuffers() *sync.Pool {
	return &sync.Pool{New: func() any {
		b := make([]byte, 64<<10)
		return &b
	}}
}
