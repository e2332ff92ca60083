// Package wire is what both ends of the guest channel do alike: they carry channels and requests
// like SSH's over a byte stream without ever waiting for each other in a circle, and TCP
// connections and datagrams over channels without losing how they ended. To clients of the guest's
// SSH server it does the same over SSH itself.
package wire

import (
	"bufio"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// readSize is how much is read at once. A message is read in two or more pieces.
	readSize = 256 << 10
	// fullAt is how many queued bytes make those who send data wait: enough to keep the
	// stream busy, little enough to delay what comes behind by no more than that.
	fullAt = 256 << 10
	// pieceSize is the most data that one message carries.
	pieceSize = 32 << 10
	// deadAt is how many queued bytes mean that the other end keeps asking for answers
	// and does not read them.
	deadAt = 128 << 20
	// keepSize is the largest buffer that is kept for later.
	keepSize = 1 << 20
	// Close gives up on what is queued when the other end has read none of it for
	// stallTimeout, and in any case after closeTimeout: who reads slowly on purpose must
	// not keep it waiting.
	stallTimeout = time.Second
	closeTimeout = 20 * time.Second
	// stepSize is how much is written at once then: less than a system takes to be read
	// in a stallTimeout, however busy.
	stepSize = 256 << 10
)

// Conn is a connection for a session to run over, ours or one of SSH. A Write does not wait: it queues, and a
// goroutine writes what has queued meanwhile all at once.
//
// That is fast, and it is what keeps two ends from waiting for each other for ever:
// a session answers some messages from the goroutine that reads, so a Write that waited
// until the other end reads would keep this end from reading. In return all who send
// data owe it to do so through Pace.
type Conn struct {
	net.Conn
	in io.Reader

	written chan struct{} // closed when nothing is written any more
	steps   chan struct{} // gets one when something was written, unless it has one

	mu      sync.Mutex
	work    *sync.Cond // there is something to write, or to end
	room    *sync.Cond // the queue has room, or is no more
	queue   []byte
	closing bool  // nothing is to be queued any more
	deaf    bool  // a Read failed: the other end is gone
	err     error // why nothing can be written any more
}

// NewConn makes a Conn of conn, which it owns from then on.
func NewConn(conn net.Conn) *Conn { return newConn(conn, bufio.NewReaderSize(conn, readSize)) }

// NewInner makes a Conn of a channel over another Conn, for a session within the session.
func NewInner(outer *Conn, channel ssh.Channel) *Conn {
	inner := &channelConn{channel, &paced{conn: outer, w: channel, piece: bulkSize}}
	return newConn(inner, inner) // what comes is in memory already
}

func newConn(conn net.Conn, in io.Reader) *Conn {
	c := &Conn{Conn: conn, in: in, written: make(chan struct{}), steps: make(chan struct{}, 1)}
	c.work, c.room = sync.NewCond(&c.mu), sync.NewCond(&c.mu)
	go c.writeAll()
	return c
}

// Read implements io.Reader.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	if err != nil {
		c.mu.Lock()
		c.deaf = true
		c.mu.Unlock()
	}
	return n, err
}

// errNotRead ends a connection whose other end does not read.
var errNotRead = errors.New("the other end does not read what it asked for")

// Write queues p. Its error is that of an earlier write, or that the other end is gone:
// a session would wait for ever for the answer to what it asks after it has read the end.
func (c *Conn) Write(p []byte) (int, error) {
	if err := c.queueUp(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// queueUp queues pieces that nothing may come between.
func (c *Conn) queueUp(pieces ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return c.err
	case c.closing, c.deaf:
		return net.ErrClosed
	}
	if len(c.queue) >= deadAt {
		c.fail(errNotRead)
		c.Conn.Close()
		return c.err
	}
	for _, p := range pieces {
		c.queue = append(c.queue, p...)
	}
	c.work.Signal()
	return nil
}

// Close closes the connection once what was queued is written, unless the other end does
// not read it or is known to be gone.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.closing = true
	deaf := c.deaf
	c.work.Signal()
	c.room.Broadcast()
	c.mu.Unlock()
	if !deaf {
		c.settle()
	}
	return c.Conn.Close()
}

// settle waits until all is written, or will not be.
func (c *Conn) settle() {
	timeout := time.After(closeTimeout)
	for {
		select {
		case <-c.written:
			return
		case <-c.steps:
		case <-time.After(stallTimeout):
			return
		case <-timeout:
			return
		}
	}
}

// writeAll writes what is queued until a write fails or the connection is closed.
func (c *Conn) writeAll() {
	defer close(c.written)
	var spare []byte
	for {
		batch, ok := c.take(spare)
		if !ok {
			return
		}
		for step := range slices.Chunk(batch, stepSize) {
			if _, err := c.Conn.Write(step); err != nil {
				c.mu.Lock()
				c.fail(err)
				c.mu.Unlock()
				return
			}
			select {
			case c.steps <- struct{}{}:
			default:
			}
		}
		spare = batch[:0]
		if cap(spare) > keepSize {
			spare = nil
		}
	}
}

// take waits for something to write and leaves spare for what comes next.
func (c *Conn) take(spare []byte) (batch []byte, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) == 0 && !c.closing && c.err == nil {
		// Those who were let in before may be held up by their own channels.
		c.room.Broadcast()
		c.work.Wait()
	}
	if len(c.queue) == 0 || c.closing && c.deaf {
		return nil, false
	}
	batch, c.queue = c.queue, spare
	// No more than there is room for, or thousands would come in at once.
	for range fullAt / pieceSize {
		c.room.Signal()
	}
	return batch, true
}

// fail ends all writing because of err, unless it has ended. The caller holds c.mu.
func (c *Conn) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.queue = nil
	c.work.Signal()
	c.room.Broadcast()
}

// await waits until the queue has room for data.
func (c *Conn) await() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) >= fullAt && c.err == nil && !c.closing {
		c.room.Wait()
	}
	if c.err == nil && c.closing {
		return net.ErrClosed
	}
	return c.err
}

// Pace returns a writer to w, which is a channel over c. It waits while too much is
// queued already.
func (c *Conn) Pace(w io.Writer) io.Writer { return &paced{conn: c, w: w, piece: pieceSize} }

type paced struct {
	conn  *Conn
	w     io.Writer
	piece int // is written at once
}

func (p *paced) Write(b []byte) (written int, err error) {
	for len(b) > 0 {
		if err := p.conn.await(); err != nil {
			return written, err
		}
		n, err := p.w.Write(b[:min(len(b), p.piece)])
		written += n
		if err != nil {
			return written, err
		}
		b = b[n:]
	}
	return written, nil
}
