package forward

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// conversationIdle is how long a conversation lasts after its last datagram: as
	// long as the kernel keeps one that it forwards.
	conversationIdle = 2 * time.Minute
	// maxConversations bounds those of one forward. Programs that ask each question
	// from a new port begin many that nobody ends.
	maxConversations = 1024
)

// datagramServer carries datagrams between a reservation's sockets and the guest.
// All that comes from one address of a client is one conversation, with a
// connection of its own into the guest, by which answers find their way back.
type datagramServer struct {
	reserved *datagramReservation
	dial     func(context.Context) (net.Conn, error)
	log      *slog.Logger
	buffers  *buffers
	idle     time.Duration
	began    time.Time
	meter    meter
	life     *life // of the sockets' readers and conversations

	mu            sync.Mutex
	conversations map[netip.AddrPort]*conversation // by the client's address
}

// serveDatagrams starts a server, which owns the reservation from now on. What is
// sent while dial takes its time is kept, up to a bound.
func serveDatagrams(
	r *datagramReservation, log *slog.Logger, buffers *buffers, dial func(context.Context) (net.Conn, error),
) *datagramServer {
	return serveDatagramsFor(conversationIdle, r, log, buffers, dial)
}

// serveDatagramsFor is serveDatagrams with another patience.
func serveDatagramsFor(
	idle time.Duration, r *datagramReservation, log *slog.Logger, buffers *buffers, dial func(context.Context) (net.Conn, error),
) *datagramServer {
	s := &datagramServer{
		reserved: r, dial: dial, log: log, buffers: buffers, idle: idle, began: time.Now(),
		life: newLife(), conversations: make(map[netip.AddrPort]*conversation),
	}
	for _, socket := range r.sockets {
		s.life.wg.Go(func() { s.receive(socket) })
	}
	return s
}

func (s *datagramServer) traffic() Traffic { return s.meter.traffic() }

// remind implements service. What a client sends next reminds the firewall; datagrams are lost
// at times.
func (s *datagramServer) remind() {}

// close frees the port, ends all conversations and returns when all is gone.
func (s *datagramServer) close() {
	s.life.cancel()
	s.reserved.close()
	s.life.wg.Wait()
}

// receive sorts what arrives at a socket by who sent it, until the socket is closed.
func (s *datagramServer) receive(socket *net.UDPConn) {
	from, err := newReceiver(socket, s.buffers)
	if err != nil {
		return // closed already
	}
	for {
		datagram, err := from.next()
		if err == nil {
			s.conversation(socket, from.from).offer(datagram)
		}
		from.release()
		if s.life.ctx.Err() != nil {
			return
		}
	}
}

// conversation returns the client's conversation, a new one if there is none.
func (s *datagramServer) conversation(socket *net.UDPConn, client netip.AddrPort) *conversation {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.conversations[client]; c != nil {
		return c
	}
	if len(s.conversations) >= maxConversations {
		s.endOldest()
	}
	c := newConversation(s, socket, client)
	s.conversations[client] = c
	s.meter.begin()
	s.life.wg.Go(c.carry)
	return c
}

// endOldest ends the conversation that has been silent for longest. The caller
// holds mu.
func (s *datagramServer) endOldest() {
	var oldest *conversation
	for _, c := range s.conversations {
		if oldest == nil || c.used.Load() < oldest.used.Load() {
			oldest = c
		}
	}
	delete(s.conversations, oldest.client)
	oldest.end()
}

// forget makes the client's next datagram begin a new conversation.
func (s *datagramServer) forget(c *conversation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conversations[c.client] == c {
		delete(s.conversations, c.client)
	}
}
