package control

import (
	"fmt"
	"io"
	"sync"
)

// inputWindow is how much input a client may send before the owner asks for more, in bytes.
// So the owner always reads what a client sends, though the guest does not, and sees
// at once when the client hangs up.
const inputWindow = 256 << 10

// queue is the input on the owner's side, as a reader for the guest.
type queue struct {
	grant func(n int) // lets the client send as much more

	mu      sync.Mutex
	change  *sync.Cond
	data    []byte
	read    int   // bytes that were read and not granted again
	err     error // what Read returns when there are no data any more
	dropped bool  // nobody reads any more
}

func newQueue(grant func(n int)) *queue {
	q := &queue{grant: grant}
	q.change = sync.NewCond(&q.mu)
	return q
}

// put adds what the client sent. It does not wait.
func (q *queue) put(data []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.dropped || q.err != nil:
		return nil
	case len(q.data)+q.read+len(data) > inputWindow:
		return fmt.Errorf("%w: more input than was asked for", errFrame)
	}
	q.data = append(q.data, data...)
	q.change.Broadcast()
	return nil
}

// end ends the input with what Read returns at its end.
func (q *queue) end(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
		q.change.Broadcast()
	}
}

// drop lets the rest of the input go: nobody reads it.
func (q *queue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dropped, q.data = true, nil
	q.change.Broadcast()
}

// Read implements io.Reader.
func (q *queue) Read(p []byte) (int, error) {
	q.mu.Lock()
	for len(q.data) == 0 && q.err == nil && !q.dropped {
		q.change.Wait()
	}
	if len(q.data) == 0 {
		defer q.mu.Unlock()
		if q.dropped {
			return 0, io.ErrClosedPipe
		}
		return 0, q.err
	}
	n := copy(p, q.data)
	q.data = q.data[n:]
	q.read += n
	granted := 0
	if q.read >= inputWindow/4 {
		granted, q.read = q.read, 0
	}
	q.mu.Unlock()
	if granted > 0 {
		q.grant(granted)
	}
	return n, nil
}

// credit is how much a client may send. It is a writer of input that waits for it.
type credit struct {
	frames *frameWriter

	mu     sync.Mutex
	change *sync.Cond
	left   int
	ended  bool
}

func newCredit(frames *frameWriter) *credit {
	c := &credit{frames: frames, left: inputWindow}
	c.change = sync.NewCond(&c.mu)
	return c
}

// add lets as much more be sent.
func (c *credit) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left += n
	c.change.Broadcast()
}

// end lets those fail who wait.
func (c *credit) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.change.Broadcast()
}

// Write implements io.Writer.
func (c *credit) Write(p []byte) (n int, err error) {
	for n < len(p) {
		part, err := c.take(min(len(p)-n, maxFrame))
		if err == nil {
			err = c.frames.write(frameInput, p[n:n+part])
		}
		if err != nil {
			return n, err
		}
		n += part
	}
	return n, nil
}

// send sends all that r yields and returns the error of r, which is io.EOF at its end.
func (c *credit) send(r io.Reader) error {
	buffer := make([]byte, maxFrame)
	for {
		n, err := r.Read(buffer)
		if n > 0 {
			if _, writeErr := c.Write(buffer[:n]); writeErr != nil {
				return nil // who listens knows why
			}
		}
		if err != nil {
			return err
		}
	}
}

// take waits until something may be sent, and returns how much of what is wanted.
func (c *credit) take(want int) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.left == 0 && !c.ended {
		c.change.Wait()
	}
	if c.ended {
		return 0, io.ErrClosedPipe
	}
	n := min(want, c.left)
	c.left -= n
	return n, nil
}
