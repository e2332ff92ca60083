package wire

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/crypto/ssh"
)

// Session carries many channels and requests over one connection, as SSH does, but without SSH's
// handshake and encryption: the guest channel leads from this very virtual machine to its host and
// nowhere else, and nobody is kept from anything by a key that both ends would make up. Its
// channels are those of SSH to all who use them.
//
// Only the host opens channels. Each has a number that is never used again. Its methods may be
// called concurrently.
type Session struct {
	conn  *Conn
	opens chan ssh.NewChannel // what the host opens, to the guest
	tells chan *Request
	done  chan struct{}
	spare chan []byte // room for data, which was used before

	asking sync.Mutex // held by who waits for an answer

	mu       sync.Mutex
	channels map[uint32]*channel
	last     uint32       // number of a channel
	answer   chan message // for who waits for one; nil: nobody does
	err      error        // why the session ended
	ended    bool
}

// queueLength is how many channels or requests may wait for whoever takes them. Then the other
// end waits, too.
const queueLength = 16

// spareLength is how many messages' worth of room is kept: a window's.
const spareLength = windowSize / bulkSize

// errManyChannels says that a session's numbers are used up.
var errManyChannels = errors.New("too many channels")

// NewHost is the host's end of a session over conn, which it owns from then on.
func NewHost(conn *Conn) *Session { return newSession(conn, nil) }

// NewGuest is the guest's end.
func NewGuest(conn *Conn) *Session { return newSession(conn, make(chan ssh.NewChannel, queueLength)) }

func newSession(conn *Conn, opens chan ssh.NewChannel) *Session {
	s := &Session{
		conn: conn, opens: opens, tells: make(chan *Request, queueLength), done: make(chan struct{}),
		spare:    make(chan []byte, spareLength),
		channels: make(map[uint32]*channel),
	}
	go s.run()
	return s
}

// Opens are the channels that the host opens. It is closed when the session has ended.
func (s *Session) Opens() <-chan ssh.NewChannel { return s.opens }

// Requests are those of the other end. It is closed when the session has ended.
func (s *Session) Requests() <-chan *Request { return s.tells }

// Close ends the session, once what was sent before is written.
func (s *Session) Close() error { return s.conn.Close() }

// Wait returns why the session has ended, once it has.
func (s *Session) Wait() error {
	<-s.done
	return s.err
}

// allocate returns room for a message.
func (s *Session) allocate(size int) []byte {
	if size < bulkSize/2 {
		return make([]byte, size)
	}
	select {
	case b := <-s.spare:
		if cap(b) >= size {
			return b[:size]
		}
	default:
	}
	return make([]byte, size, max(size, bulkSize+headSize))
}

// recycle takes back what allocate returned and nobody uses any more.
func (s *Session) recycle(b []byte) {
	if cap(b) < bulkSize {
		return
	}
	select {
	case s.spare <- b[:0]:
	default:
	}
}

// run handles what comes until nothing does.
func (s *Session) run() {
	var err error
	for err == nil {
		var m message
		if m, err = readMessage(s.conn, s.allocate); err == nil {
			err = s.handle(m)
		}
	}
	s.conn.Close()
	s.mu.Lock()
	s.err, s.ended = err, true
	channels := s.channels
	s.channels = nil
	if s.answer != nil {
		close(s.answer)
	}
	s.mu.Unlock()
	for _, c := range channels {
		c.end()
	}
	close(s.tells)
	if s.opens != nil {
		close(s.opens)
	}
	close(s.done)
}

func (s *Session) handle(m message) error {
	switch m.kind {
	case kindNotify, kindAsk:
		s.tells <- &Request{Type: m.name, WantReply: m.kind == kindAsk, Payload: m.payload, session: s}
		return nil
	case kindDone, kindRefused:
		return s.answered(m)
	case kindOpen:
		return s.opened(m)
	}
	s.mu.Lock()
	c := s.channels[m.channel]
	s.mu.Unlock()
	if c == nil {
		return fmt.Errorf("%w: of no channel", errMessage)
	}
	return c.handle(m)
}

// answered gives an answer to who waits for it.
func (s *Session) answered(m message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answer == nil {
		return fmt.Errorf("%w: an answer to no question", errMessage)
	}
	s.answer <- m
	s.answer = nil
	return nil
}

// opened takes in a channel that the host opens.
func (s *Session) opened(m message) error {
	if s.opens == nil {
		return fmt.Errorf("%w: the guest may not open channels", errMessage)
	}
	c := newChannel(s, m.channel)
	s.mu.Lock()
	if s.channels[m.channel] != nil {
		s.mu.Unlock()
		return fmt.Errorf("%w: the channel is open", errMessage)
	}
	s.channels[m.channel] = c
	s.mu.Unlock()
	s.opens <- &opening{channel: c, kind: m.name, payload: m.payload}
	return nil
}

// forget takes a channel out that is closed.
func (s *Session) forget(c *channel) {
	s.mu.Lock()
	delete(s.channels, c.id)
	s.mu.Unlock()
}

func (s *Session) send(m message) error {
	head, err := m.head()
	if err != nil {
		return err
	}
	return s.conn.queueUp(head, m.payload)
}

// OpenChannel opens a channel of a type, for which the payload is meant. The error is an
// *ssh.OpenChannelError if the guest refuses.
func (s *Session) OpenChannel(kind string, payload []byte) (ssh.Channel, <-chan *ssh.Request, error) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return nil, nil, io.EOF
	}
	s.last++
	if s.last == 0 {
		s.last--
		s.mu.Unlock()
		return nil, nil, errManyChannels
	}
	c := newChannel(s, s.last)
	s.channels[c.id] = c
	s.mu.Unlock()
	if err := s.send(message{kind: kindOpen, channel: c.id, name: kind, payload: payload}); err != nil {
		s.forget(c)
		return nil, nil, err
	}
	m, ok := <-c.decision
	switch {
	case !ok:
		return nil, nil, io.EOF
	case m.kind == kindReject:
		return nil, nil, &ssh.OpenChannelError{Reason: ssh.ConnectionFailed, Message: string(m.payload)}
	}
	return c, c.requests, nil
}

// SendRequest sends a request. If that wants a reply it waits for it and returns whether the
// request was granted, and what the other end said to it.
func (s *Session) SendRequest(name string, wantReply bool, payload []byte) (bool, []byte, error) {
	if !wantReply {
		return false, nil, s.send(message{kind: kindNotify, name: name, payload: payload})
	}
	s.asking.Lock()
	defer s.asking.Unlock()
	answer := make(chan message, 1)
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return false, nil, io.EOF
	}
	s.answer = answer
	s.mu.Unlock()
	if err := s.send(message{kind: kindAsk, name: name, payload: payload}); err != nil {
		s.mu.Lock()
		s.answer = nil
		s.mu.Unlock()
		return false, nil, err
	}
	m, ok := <-answer
	if !ok {
		return false, nil, io.EOF
	}
	return m.kind == kindDone, m.payload, nil
}

// Request is one of a session as a whole.
type Request struct {
	Type      string
	WantReply bool
	Payload   []byte
	session   *Session
}

// Reply answers the request, if that wants it. Requests are answered in the order in which they
// came.
func (r *Request) Reply(ok bool, payload []byte) error {
	if !r.WantReply {
		return nil
	}
	kind := kindRefused
	if ok {
		kind = kindDone
	}
	return r.session.send(message{kind: kind, payload: payload})
}
