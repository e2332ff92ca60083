package guest

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// stream makes sessions, one after another, out of a byte stream that has none.
// See guestapi.Frame for how.
type stream struct {
	rw io.ReadWriter
	// seed is given the entropy of every new Hello, before it is answered.
	seed func([]byte)

	readMu  sync.Mutex // held while reading from rw, and for what follows
	scanner guestapi.Scanner
	buf     []byte
	unread  []byte          // part of buf
	hello   *guestapi.Frame // ended a session, and is yet to be answered

	writeMu sync.Mutex
}

func newStream(rw io.ReadWriter, seed func([]byte)) *stream {
	return &stream{rw: rw, seed: seed, buf: make([]byte, 128<<10)}
}

// accept returns the next session. The session before must have ended or be
// closed. It fails only when the stream itself does.
func (s *stream) accept() (net.Conn, error) {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	var hello *guestapi.Frame
	for {
		f, err := s.next()
		if err != nil {
			return nil, err
		}
		switch {
		case f.Kind == guestapi.FrameHello:
			if hello == nil || hello.Nonce != f.Nonce {
				s.seed(f.Entropy[:])
			}
			hello = &f
			if err := s.answer(guestapi.NewEcho(f.Nonce)); err != nil {
				return nil, err
			}
		case f.Kind == guestapi.FrameGo && hello != nil && hello.Nonce == f.Nonce:
			if err := s.answer(guestapi.Frame{Kind: guestapi.FrameReady, Nonce: f.Nonce}); err != nil {
				return nil, err
			}
			return &streamConn{stream: s, mask: guestapi.NewMask(f.Nonce)}, nil
		}
	}
}

// next returns the next frame and drops what is before it.
func (s *stream) next() (guestapi.Frame, error) {
	if f := s.hello; f != nil {
		s.hello = nil
		return *f, nil
	}
	for {
		n, f, ok := s.scanner.Scan(s.unread)
		s.unread = s.unread[n:]
		if ok {
			return f, nil
		}
		err := s.fill()
		if errors.Is(err, io.EOF) {
			err = s.awaitHost()
		}
		if err != nil {
			return f, err
		}
	}
}

// fill reads more if nothing is unread.
func (s *stream) fill() error {
	if len(s.unread) > 0 {
		return nil
	}
	n, err := s.rw.Read(s.buf)
	s.unread = s.buf[:n]
	if n > 0 {
		return nil
	}
	return err
}

// awaitHost returns once a host is connected. While none is, a virtio-serial port
// reads as ended at once, again and again, but a write to it waits. The host
// drops the byte as it drops all that comes before the answer to its Hello.
func (s *stream) awaitHost() error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	_, err := s.rw.Write([]byte{0})
	return err
}

func (s *stream) answer(f guestapi.Frame) error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	_, err := s.rw.Write(f.Append(nil))
	return err
}

// streamConn is one session of a stream.
type streamConn struct {
	stream *stream
	mask   *guestapi.Mask // of what is read
	mu     sync.Mutex
	closed bool
}

// Read ends with io.EOF when the host hangs up or begins another session.
func (c *streamConn) Read(p []byte) (int, error) {
	s := c.stream
	s.readMu.Lock()
	defer s.readMu.Unlock()
	err := s.fill()
	if c.isClosed() {
		// What was read meanwhile is the next session's.
		return 0, net.ErrClosed
	}
	if err != nil {
		c.Close()
		return 0, err
	}
	// Data is handed on even if it may be the beginning of a frame: holding it
	// back could wait for ever. A session that a frame ends has no use for it.
	n, f, ok := s.scanner.Scan(s.unread[:min(len(p), len(s.unread))])
	data := s.unread[:n]
	s.unread = s.unread[n:]
	if ok && f.Kind == guestapi.FrameHello {
		s.hello = &f
		c.Close()
		return 0, io.EOF
	}
	c.mask.Apply(p, data)
	return len(data), nil
}

func (c *streamConn) Write(p []byte) (int, error) {
	c.stream.writeMu.Lock()
	defer c.stream.writeMu.Unlock()
	if c.isClosed() {
		return 0, net.ErrClosed
	}
	return c.stream.rw.Write(p)
}

// Close ends the session. A Read that waits does so until the next byte comes,
// and leaves that to the next session.
func (c *streamConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

func (c *streamConn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func (c *streamConn) LocalAddr() net.Addr              { return streamAddr{} }
func (c *streamConn) RemoteAddr() net.Addr             { return streamAddr{} }
func (c *streamConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *streamConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *streamConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

type streamAddr struct{}

func (streamAddr) Network() string { return "channel" }
func (streamAddr) String() string  { return guestapi.ChannelName }
