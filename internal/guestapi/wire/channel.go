package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/crypto/ssh"
)

// bulkSize is the most data that one message of ours carries. What waits behind it waits for that
// long, so only a connection with others within it sends so much at once.
const bulkSize = 128 << 10

// windowSize is how much each end of a channel takes in before it is read, in bytes.
const windowSize = 2 << 20

// errReply says that a channel's requests have none.
var errReply = errors.New("requests of channels get no reply")

// channel is an ssh.Channel of a Session.
type channel struct {
	session  *Session
	id       uint32
	requests chan *ssh.Request
	decision chan message // of the guest; closed when there will be none

	sendMu sync.Mutex // held while sending, and for what follows
	ended  bool       // no data is sent any more
	closed bool       // nothing is

	mu     sync.Mutex
	change *sync.Cond
	out    []piece // what came, and was not read yet
	errOut []piece
	unsent int  // what may still come
	unread int  // how much of what came was read since the other end was told
	window int  // how much may be sent
	eof    bool // no more data comes
	over   bool // nothing comes or goes any more
}

// piece is data that came at once.
type piece struct{ all, unread []byte }

func newChannel(s *Session, id uint32) *channel {
	c := &channel{
		session: s, id: id, requests: make(chan *ssh.Request, queueLength), decision: make(chan message, 1),
		unsent: windowSize, window: windowSize,
	}
	c.change = sync.NewCond(&c.mu)
	return c
}

// handle takes in a message. Only the session's own goroutine calls it.
func (c *channel) handle(m message) error {
	switch m.kind {
	case kindAccept, kindReject:
		if m.kind == kindReject {
			c.session.forget(c)
			defer c.end()
		}
		select {
		case c.decision <- m:
			return nil
		default:
			return fmt.Errorf("%w: decided twice", errMessage)
		}
	case kindData, kindErrData:
		return c.takeIn(m)
	case kindWindow:
		return c.widen(m.payload)
	case kindEnd:
		c.mu.Lock()
		c.eof = true
		c.change.Broadcast()
		c.mu.Unlock()
		return nil
	case kindClose:
		_ = c.Close() // if that fails the session ends
		c.session.forget(c)
		c.end()
		return nil
	case kindTell:
		c.requests <- &ssh.Request{Type: m.name, Payload: m.payload}
		return nil
	}
	return fmt.Errorf("%w: kind %d", errMessage, m.kind)
}

func (c *channel) takeIn(m message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(m.payload) > c.unsent || c.eof {
		return fmt.Errorf("%w: more data than may come", errMessage)
	}
	c.unsent -= len(m.payload)
	if len(m.payload) > 0 {
		to := c.stream(m.kind)
		*to = append(*to, piece{all: m.payload, unread: m.payload})
		c.change.Broadcast()
	}
	return nil
}

func (c *channel) stream(k kind) *[]piece {
	if k == kindErrData {
		return &c.errOut
	}
	return &c.out
}

func (c *channel) widen(payload []byte) error {
	if len(payload) != 4 {
		return fmt.Errorf("%w: a window of %d bytes", errMessage, len(payload))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	more := int64(binary.BigEndian.Uint32(payload))
	if int64(c.window)+more > windowSize {
		return fmt.Errorf("%w: a window of %d more", errMessage, more)
	}
	c.window += int(more)
	c.change.Broadcast()
	return nil
}

// end ends all that waits. Only the session's own goroutine calls it, once.
func (c *channel) end() {
	c.mu.Lock()
	c.eof, c.over = true, true
	c.change.Broadcast()
	c.mu.Unlock()
	close(c.requests)
	close(c.decision)
}

// send sends a message of the channel. Its error is io.EOF after the last one.
func (c *channel) send(k kind, name string, payload []byte) error {
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	if c.closed {
		return io.EOF
	}
	switch k {
	case kindData, kindErrData:
		if c.ended {
			return io.EOF
		}
	case kindEnd:
		c.ended = true
	case kindClose, kindReject:
		c.closed = true
	}
	return c.session.send(message{kind: k, channel: c.id, name: name, payload: payload})
}

// Read implements ssh.Channel.
func (c *channel) Read(p []byte) (int, error) { return c.read(kindData, p) }

func (c *channel) read(k kind, p []byte) (n int, err error) {
	c.mu.Lock()
	from := c.stream(k)
	for len(*from) == 0 && !c.eof {
		c.change.Wait()
	}
	if len(*from) == 0 {
		c.mu.Unlock()
		return 0, io.EOF
	}
	for n < len(p) && len(*from) > 0 {
		first := &(*from)[0]
		copied := copy(p[n:], first.unread)
		n += copied
		if first.unread = first.unread[copied:]; len(first.unread) == 0 {
			c.session.recycle(first.all)
			*from = (*from)[1:]
		}
	}
	c.unread += n
	grant := 0
	if c.unread >= windowSize/4 {
		grant, c.unread = c.unread, 0
		c.unsent += grant
	}
	c.mu.Unlock()
	if grant > 0 {
		// If this fails nothing more comes, which the next Read finds.
		_ = c.send(kindWindow, "", binary.BigEndian.AppendUint32(nil, uint32(grant)))
	}
	return n, nil
}

// Write implements ssh.Channel.
func (c *channel) Write(p []byte) (int, error) { return c.write(kindData, p) }

func (c *channel) write(k kind, p []byte) (written int, err error) {
	for written < len(p) {
		c.mu.Lock()
		for c.window == 0 && !c.over {
			c.change.Wait()
		}
		n := min(len(p)-written, bulkSize, c.window)
		c.window -= n
		over := c.over
		c.mu.Unlock()
		if over {
			return written, io.EOF
		}
		if err := c.send(k, "", p[written:written+n]); err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

// CloseWrite implements ssh.Channel.
func (c *channel) CloseWrite() error { return c.send(kindEnd, "", nil) }

// Close implements ssh.Channel.
func (c *channel) Close() error { return c.send(kindClose, "", nil) }

// SendRequest implements ssh.Channel, but for replies.
func (c *channel) SendRequest(name string, wantReply bool, payload []byte) (bool, error) {
	if wantReply {
		return false, errReply
	}
	return false, c.send(kindTell, name, payload)
}

// Stderr implements ssh.Channel.
func (c *channel) Stderr() io.ReadWriter { return errStream{c} }

// errStream is a channel's second stream.
type errStream struct{ channel *channel }

func (e errStream) Read(p []byte) (int, error)  { return e.channel.read(kindErrData, p) }
func (e errStream) Write(p []byte) (int, error) { return e.channel.write(kindErrData, p) }

// opening is a channel that the host wants to open. It is an ssh.NewChannel.
type opening struct {
	channel *channel
	kind    string
	payload []byte
}

func (o *opening) ChannelType() string { return o.kind }
func (o *opening) ExtraData() []byte   { return o.payload }

// Accept implements ssh.NewChannel.
func (o *opening) Accept() (ssh.Channel, <-chan *ssh.Request, error) {
	if err := o.channel.send(kindAccept, "", nil); err != nil {
		return nil, nil, err
	}
	return o.channel, o.channel.requests, nil
}

// Reject implements ssh.NewChannel. The host looks at the message alone.
func (o *opening) Reject(_ ssh.RejectionReason, message string) error {
	o.channel.session.forget(o.channel)
	return o.channel.send(kindReject, "", []byte(message))
}
