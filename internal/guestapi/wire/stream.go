package wire

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// ErrCut is how a Stream ends that was neither ended in order nor reset: what it was
// carried over is gone.
var ErrCut = errors.New("connection cut")

// Stream is one end of a TCP connection that is carried over an SSH channel. Its
// directions end one by one, and both at once by a reset.
//
// SSH tells the reader of a channel the same of an orderly end, a close and a lost
// session. So the ends of a Stream say beforehand what is to come: guestapi.RequestEnd
// or guestapi.RequestReset.
type Stream struct {
	channel ssh.Channel
	out     io.Writer
	tells   bool // the other end tells how it ends

	ask   chan chan struct{}
	reset chan struct{} // closed when the other end was reset
	over  chan struct{} // closed when the channel is

	mu     sync.Mutex
	ended  bool // the other end has ended its direction in order
	closed bool // by Close
	abrupt bool // Close resets
}

// NewStream makes a Stream of a channel over conn. If the other end is none of ours it
// does not tell how it ends: then whatever ends it counts as order.
func NewStream(conn *Conn, channel ssh.Channel, requests <-chan *ssh.Request, ours bool) *Stream {
	s := &Stream{
		channel: channel, out: conn.Pace(channel), tells: ours,
		ask: make(chan chan struct{}), reset: make(chan struct{}), over: make(chan struct{}),
	}
	go s.follow(requests)
	return s
}

// WasReset is closed when the other end was reset.
func (s *Stream) WasReset() <-chan struct{} { return s.reset }

// Over is closed when the channel is closed altogether, by whomever. What came before
// can still be read.
func (s *Stream) Over() <-chan struct{} { return s.over }

// Cut reports whether the stream is over, and neither ended in order nor reset.
func (s *Stream) Cut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tells && isClosed(s.over) && !s.ended && !s.closed && !isClosed(s.reset)
}

// follow takes the other end's requests until there can be no more.
func (s *Stream) follow(requests <-chan *ssh.Request) {
	defer close(s.over)
	for {
		select {
		case req, ok := <-requests:
			if !ok {
				return
			}
			s.take(req)
		case answer := <-s.ask:
			if !s.takeAll(requests) {
				close(answer)
				return
			}
			close(answer)
		}
	}
}

// takeAll takes what is there. It returns false if that was the last.
func (s *Stream) takeAll(requests <-chan *ssh.Request) bool {
	for {
		select {
		case req, ok := <-requests:
			if !ok {
				return false
			}
			s.take(req)
		default:
			return true
		}
	}
}

func (s *Stream) take(req *ssh.Request) {
	switch req.Type {
	case guestapi.RequestEnd:
		s.mu.Lock()
		s.ended = true
		s.mu.Unlock()
	case guestapi.RequestReset:
		if !isClosed(s.reset) {
			close(s.reset)
		}
	}
	_ = req.Reply(false, nil)
}

// settle returns once all that was told before now is known.
func (s *Stream) settle() {
	answer := make(chan struct{})
	select {
	case s.ask <- answer:
		<-answer
	case <-s.over:
	}
}

// Read reads what the other end sent. It ends with io.EOF when that has ended its
// direction, with an error that is syscall.ECONNRESET when it was reset, with net.ErrClosed
// after Close, and with ErrCut else.
func (s *Stream) Read(p []byte) (int, error) {
	n, err := s.channel.Read(p)
	if n > 0 || err == nil {
		return n, nil
	}
	s.settle()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case isClosed(s.reset) && !s.closed: // after Close it may be the echo of our own
		return 0, syscall.ECONNRESET
	case s.ended:
		return 0, io.EOF
	case s.closed:
		return 0, net.ErrClosed
	case !s.tells:
		return 0, io.EOF
	}
	return 0, ErrCut
}

// Write sends to the other end. Its error is syscall.ECONNRESET if that was reset,
// syscall.EPIPE after CloseWrite or if the other end is closed, net.ErrClosed after
// Close, and ErrCut else.
func (s *Stream) Write(p []byte) (int, error) {
	n, err := s.out.Write(p)
	if err == nil {
		return n, nil
	}
	s.settle()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case isClosed(s.reset) && !s.closed:
		return n, syscall.ECONNRESET
	case s.closed:
		return n, net.ErrClosed
	case errors.Is(err, io.EOF) && (s.ended || !isClosed(s.over)):
		return n, syscall.EPIPE
	}
	return n, ErrCut
}

// CloseWrite ends the sending direction. It must not be called during a Write.
func (s *Stream) CloseWrite() error {
	if _, err := s.channel.SendRequest(guestapi.RequestEnd, false, nil); err != nil {
		return err
	}
	return s.channel.CloseWrite()
}

// SetLinger with 0 makes Close reset the connection: the other end sees no orderly end,
// and what is on its way may be lost. Any other value undoes that.
func (s *Stream) SetLinger(seconds int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.abrupt = seconds == 0
	return nil
}

// Close closes the connection. What was written before still arrives. A Read or Write
// that waits ends once the other end has confirmed.
func (s *Stream) Close() error {
	s.mu.Lock()
	how := guestapi.RequestEnd
	if s.abrupt {
		how = guestapi.RequestReset
	}
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if again {
		return nil
	}
	// These fail if the channel is closed already, which is what is wanted.
	_, _ = s.channel.SendRequest(how, false, nil)
	_ = s.channel.Close()
	return nil
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
