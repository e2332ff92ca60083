package forward

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A conversation keeps so many datagrams, and bytes of them, until the guest takes
// them. More are lost, as they would be on a wire.
const (
	maxQueued      = 256
	maxQueuedBytes = 512 << 10
)

// conversation is what one client's address and the guest say to each other.
type conversation struct {
	server *datagramServer
	socket *net.UDPConn // that the client sends to, so answers come from there
	client netip.AddrPort

	ctx context.Context // ends with the conversation
	end context.CancelFunc

	queue  chan []byte
	queued atomic.Int64 // bytes in the queue
	used   atomic.Int64 // the server's age when a datagram last went either way
}

func newConversation(s *datagramServer, socket *net.UDPConn, client netip.AddrPort) *conversation {
	c := &conversation{server: s, socket: socket, client: client, queue: make(chan []byte, maxQueued)}
	c.ctx, c.end = context.WithCancel(s.life.ctx)
	c.touch()
	return c
}

func (c *conversation) touch() { c.used.Store(int64(time.Since(c.server.began))) }

// silence is how long nothing has been said.
func (c *conversation) silence() time.Duration {
	return time.Since(c.server.began) - time.Duration(c.used.Load())
}

// offer queues a copy of a datagram for the guest, if there is room. It never waits.
func (c *conversation) offer(datagram []byte) {
	c.touch()
	size := int64(len(datagram))
	if c.queued.Add(size) <= maxQueuedBytes {
		select {
		case c.queue <- bytes.Clone(datagram):
			return
		default:
		}
	}
	c.queued.Add(-size)
}

// carry connects the client to the guest until the conversation ends.
func (c *conversation) carry() {
	s := c.server
	defer s.meter.end()
	defer s.forget(c)
	defer c.end()
	ctx, cancel := context.WithTimeout(c.ctx, dialTimeout)
	guest, err := s.dial(ctx)
	cancel()
	if err != nil {
		s.log.Debug("could not begin a conversation with the guest", "error", err)
		return
	}
	// Whatever waits for the guest's end is interrupted.
	context.AfterFunc(c.ctx, func() { guest.Close() })
	var answers sync.WaitGroup
	answers.Go(func() {
		c.toClient(guest)
		c.end()
	})
	c.toGuest(guest)
	c.end()
	answers.Wait()
	guest.Close() // for certain when carry returns
}

// toGuest sends what is queued, until nothing was said for too long.
func (c *conversation) toGuest(guest net.Conn) {
	idle := time.NewTimer(c.server.idle)
	defer idle.Stop()
	for {
		select {
		case datagram := <-c.queue:
			c.queued.Add(-int64(len(datagram)))
			c.send(guest, datagram)
		case <-idle.C:
			rest := c.server.idle - c.silence()
			if rest <= 0 {
				return
			}
			idle.Reset(rest)
		case <-c.ctx.Done():
			return
		}
	}
}

// send gives one datagram to the guest, or loses it. If the way to the guest is
// gone, reading says so.
func (c *conversation) send(guest net.Conn, datagram []byte) {
	_, err := guest.Write(datagram)
	if undelivered(err) {
		// That was about an earlier one. This one was not sent.
		_, err = guest.Write(datagram)
	}
	if err == nil {
		c.server.meter.toGuest.Add(int64(len(datagram)))
	}
}

// toClient hands the guest's answers on until the way to the guest is gone.
func (c *conversation) toClient(guest net.Conn) {
	from, err := newSource(guest, c.server.buffers)
	if err != nil {
		return // closed already
	}
	for {
		datagram, err := from.next()
		if err == nil {
			c.touch()
			if _, err := c.socket.WriteToUDPAddrPort(datagram, c.client); err == nil {
				c.server.meter.fromGuest.Add(int64(len(datagram)))
			}
		}
		from.release()
		if err != nil && !undelivered(err) {
			return
		}
	}
}

// undelivered tells whether an error is the network's word on an earlier datagram:
// nobody listened, or the guest was paused. The next may do better.
func undelivered(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}
