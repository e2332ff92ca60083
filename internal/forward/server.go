package forward

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
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
	buffers  *buffers
	meter    meter
	life     *life // of the accept loops and connections

	mu    sync.Mutex
	open  map[Conn]struct{} // both ends of all connections
	ended bool
}

// serve starts a server, which owns the reservation from now on.
func serve(r *reservation, log *slog.Logger, buffers *buffers, dial func(context.Context) (Conn, error)) *server {
	s := &server{reserved: r, dial: dial, log: log, buffers: buffers, life: newLife(), open: make(map[Conn]struct{})}
	for _, l := range r.sockets {
		s.life.wg.Go(func() { s.accept(l) })
	}
	return s
}

func (s *server) traffic() Traffic { return s.meter.traffic() }

// close frees the port, resets all connections and returns when all is gone.
func (s *server) close() {
	s.life.cancel()
	s.reserved.close()
	s.mu.Lock()
	s.ended = true
	for c := range s.open {
		abort(c)
	}
	s.mu.Unlock()
	s.life.wg.Wait()
}

func (s *server) accept(l *net.TCPListener) {
	pause := firstAcceptPause
	for {
		conn, err := l.AcceptTCP()
		if err == nil {
			pause = firstAcceptPause
			s.life.wg.Go(func() { s.carry(conn) })
			continue
		}
		if s.life.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		s.log.Warn("could not accept a connection", "error", err, "pause", pause)
		select {
		case <-time.After(pause):
			pause = min(2*pause, lastAcceptPause)
		case <-s.life.ctx.Done():
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
	s.meter.begin()
	defer s.meter.end()
	ctx, cancel := context.WithTimeout(s.life.ctx, dialTimeout)
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
	s.join(client, guest)
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

// What a connection sends to remind a firewall is one probe, as TCP makes them to see whether
// the other end lives. There is no second one: a guest that is paused does not answer.
const (
	reminderDelay = time.Second // the least that the kernel takes
	reminderEnd   = 3 * reminderDelay
)

// remind implements service. A connection that was opened while nothing tracked connections
// is unknown to the guards when they are back, until this end sends something. If it is the
// guest's turn to speak, the guards drop what it says, and both ends would wait for ever.
func (s *server) remind() {
	var reminded []*net.TCPConn
	s.mu.Lock()
	for c := range s.open {
		conn, ok := c.(*net.TCPConn)
		if !ok || isLoopback(conn.RemoteAddr()) {
			continue // a tunnel, or the client
		}
		probe := net.KeepAliveConfig{Enable: true, Idle: reminderDelay, Interval: time.Hour, Count: -1}
		if conn.SetKeepAliveConfig(probe) == nil { // else it is closed
			reminded = append(reminded, conn)
		}
	}
	s.mu.Unlock()
	if len(reminded) == 0 {
		return
	}
	time.AfterFunc(reminderEnd, func() {
		for _, conn := range reminded {
			_ = conn.SetKeepAlive(false) // fails on a closed connection only
		}
	})
}

func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// abort closes a connection so that its other end sees a reset, not an
// orderly end, and nothing of it lingers in the kernel.
func abort(c Conn) {
	if l, ok := c.(interface{ SetLinger(seconds int) error }); ok {
		_ = l.SetLinger(0) // fails on a closed connection only
	}
	c.Close()
}
