package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/crypto/ssh"
)

// MaxDatagram is the largest datagram that UDP carries, in bytes.
const MaxDatagram = 65507

// queueSize is how much may wait each way, in bytes.
const queueSize = 512 << 10

// ErrTooLong says that a datagram is longer than MaxDatagram.
var ErrTooLong = errors.New("datagram too long")

// Datagrams is one end of a conversation in datagrams that is carried over an SSH
// channel. Nothing in it waits for room: a datagram that finds none is lost, here or at
// the other end. Its methods may be called concurrently.
type Datagrams struct {
	channel ssh.Channel
	in, out *queue
}

// NewDatagrams makes Datagrams of a channel over conn. The caller owes a Close.
func NewDatagrams(conn *Conn, channel ssh.Channel, requests <-chan *ssh.Request) *Datagrams {
	d := &Datagrams{channel: channel, in: newQueue(queueSize), out: newQueue(queueSize)}
	go ssh.DiscardRequests(requests)
	go d.receive(channel)
	go d.send(conn.Pace(channel))
	return d
}

// Read reads one datagram. What of it does not fit in p is lost. It ends with io.EOF
// after Close, or when the other end or the session is gone.
func (d *Datagrams) Read(p []byte) (int, error) { return d.in.get(p) }

// Write sends one datagram, or loses it. It fails if that can never be sent, or with
// io.ErrClosedPipe when nothing can be any more.
func (d *Datagrams) Write(p []byte) (int, error) {
	if len(p) > MaxDatagram {
		return 0, fmt.Errorf("%w: %d bytes", ErrTooLong, len(p))
	}
	if !d.out.put(p) {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

// Close ends the conversation. What was written before is still sent.
func (d *Datagrams) Close() error {
	d.in.drop()
	d.out.close()
	return nil
}

// receive takes in datagrams until there can be no more.
func (d *Datagrams) receive(from io.Reader) {
	defer d.out.close()
	defer d.in.close()
	r := bufio.NewReaderSize(from, pieceSize)
	buf := make([]byte, MaxDatagram)
	for {
		n, err := readDatagram(r, buf)
		if err != nil {
			return
		}
		d.in.put(buf[:n]) // after Close it is lost
	}
}

// send sends what is queued until there can be no more, and closes the channel.
func (d *Datagrams) send(to io.Writer) {
	defer d.channel.Close()
	var batch []byte
	for {
		batch = d.out.takeAll(batch)
		if len(batch) == 0 {
			return
		}
		if _, err := to.Write(batch); err != nil {
			d.out.drop()
			return
		}
	}
}

// readDatagram reads one datagram with its length before it.
func readDatagram(r io.Reader, p []byte) (int, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(header[:]))
	if n > len(p) {
		return 0, fmt.Errorf("%w: %d bytes", ErrTooLong, n)
	}
	if _, err := io.ReadFull(r, p[:n]); err != nil {
		return 0, fmt.Errorf("read datagram: %w", err)
	}
	return n, nil
}

const headerSize = 2

// queue holds datagrams, each with its length before it, one after the other.
type queue struct {
	size int

	mu     sync.Mutex
	change *sync.Cond
	buf    []byte
	head   int // where the first one begins
	closed bool
}

func newQueue(size int) *queue {
	q := &queue{size: size}
	q.change = sync.NewCond(&q.mu)
	return q
}

// put puts a datagram in, if it has room. It returns false if the queue is closed.
func (q *queue) put(p []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	if len(q.buf)-q.head+headerSize+len(p) > q.size {
		return true
	}
	if q.head > q.size {
		q.buf = q.buf[:copy(q.buf, q.buf[q.head:])]
		q.head = 0
	}
	q.buf = binary.BigEndian.AppendUint16(q.buf, uint16(len(p)))
	q.buf = append(q.buf, p...)
	q.change.Signal()
	return true
}

// get waits for a datagram. It ends with io.EOF when the queue is closed and empty.
func (q *queue) get(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wait()
	if q.head == len(q.buf) {
		return 0, io.EOF
	}
	n := int(binary.BigEndian.Uint16(q.buf[q.head:]))
	datagram := q.buf[q.head+headerSize:][:n]
	q.head += headerSize + n
	copied := copy(p, datagram)
	if q.head == len(q.buf) {
		q.buf, q.head = q.buf[:0], 0
	}
	return copied, nil
}

// takeAll waits for datagrams and takes all there are: none if the queue is closed and
// empty. It leaves spare for later ones.
func (q *queue) takeAll(spare []byte) []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wait()
	all := q.buf[q.head:]
	q.buf, q.head = spare[:0], 0
	return all
}

// wait waits until there is a datagram, or the queue is closed.
func (q *queue) wait() {
	for len(q.buf) == q.head && !q.closed {
		q.change.Wait()
	}
}

// close lets no more in.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.change.Broadcast()
}

// drop closes the queue and loses what is in it.
func (q *queue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.buf, q.head = nil, 0
	q.change.Broadcast()
}
