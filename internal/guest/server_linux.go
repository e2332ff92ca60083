package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestapi/wire"
)

// loginTimeout bounds how long a client on the network may take to log in.
const loginTimeout = 30 * time.Second

// System is what the host's requests act on.
type System interface {
	// Ready waits until commands can run in the guest. If they never can, it says
	// why.
	Ready(context.Context) error
	// Configure gives the guest its identity. It may be called again, with
	// another one.
	Configure(context.Context, guestapi.Identity) error
	// StepClock steps the time of day and returns what it is then.
	StepClock(time.Duration) (time.Time, error)
	// Rehearse is like Configure, but leaves the guest without an identity.
	Rehearse(context.Context, guestapi.Identity) error
	// Rest writes out the disk, gives back what is not needed, and has in memory what copies will.
	Rest()
	// Sync writes out the disk.
	Sync()
	// PowerOff begins to power off. It does not wait.
	PowerOff()
	// Console takes what commands write that nobody waits for.
	Console() io.Writer
}

// Server serves the host on the guest channel, and SSH clients on the network. Its methods may be called concurrently.
type Server struct {
	system System
	reaper *Reaper
	log    *slog.Logger
	nudge  *nudge // given when a command starts
	main   mainProcess

	sockets socketTable
	folders folders
	buffers wire.Buffers

	mu       sync.Mutex
	identity guestapi.Identity // what the server itself uses of it
}

// NewServer makes a server that starts its commands with reaper. It logs to log.
func NewServer(system System, reaper *Reaper, log *slog.Logger) *Server {
	return &Server{system: system, reaper: reaper, log: log, nudge: newNudge(), sockets: socketTable{proc: procNet}}
}

// ServeChannel serves the host on the guest channel, which needs no
// authentication: only the host has its other end. It returns when stream fails.
// Entropy that the host sends goes to seed.
func (s *Server) ServeChannel(rw io.ReadWriter, seed func([]byte)) error {
	stream := newStream(rw, seed)
	for {
		conn, err := stream.accept()
		if err != nil {
			return fmt.Errorf("accept session: %w", err)
		}
		s.serveHost(conn)
	}
}

// rest gets ready to be copied. First it takes an identity that means nothing, so that a copy
// that gets its own finds all that is needed for it in memory.
func (s *Server) rest(ctx context.Context, rehearsal []byte) error {
	if err := s.configure(ctx, rehearsal, s.system.Rehearse); err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	s.mu.Lock()
	s.identity = guestapi.Identity{} // every copy gets its own
	s.mu.Unlock()
	s.system.Rest()
	return nil
}

// serveHost serves one session of the host and closes its connection.
func (s *Server) serveHost(raw net.Conn) {
	defer s.survive()
	conn := wire.NewConn(raw)
	defer conn.Close()
	session := wire.NewGuest(conn)
	// In the next session there are only the folders that it mounts.
	defer s.folders.endAll()
	// The host may take it for the end of the session that the next one is answered.
	var own sync.WaitGroup
	defer own.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	own.Go(func() {
		defer s.survive()
		for req := range session.Requests() {
			s.hostRequest(ctx, session, &own, req)
		}
	})
	s.serveChannels(ctx, &peer{conn: conn, host: true}, session.Opens())
}

// ServeNetwork serves SSH clients on the network, who log in as root with one of
// the identity's keys. It returns when the listener fails or is closed.
func (s *Server) ServeNetwork(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return fmt.Errorf("accept connection: %w", err)
		}
		go func() {
			defer s.survive()
			defer conn.Close()
			config, err := s.networkConfig()
			if err == nil {
				_ = conn.SetDeadline(time.Now().Add(loginTimeout))
				err = s.serveClient(conn, config)
			}
			// A reset is how the host's proof of forwarding ends its connection.
			if err != nil && !errors.Is(err, unix.ECONNRESET) {
				s.log.Info("an SSH connection failed", "from", conn.RemoteAddr().String(), "error", err)
			}
		}()
	}
}

func (s *Server) networkConfig() (*ssh.ServerConfig, error) {
	s.mu.Lock()
	id := s.identity
	s.mu.Unlock()
	// Not before somebody comes: most guests have no clients on the network.
	hostKey, keys, err := id.Keys()
	switch {
	case err != nil:
		return nil, err
	case hostKey == nil:
		return nil, errors.New("the guest has no identity yet")
	}
	config := &ssh.ServerConfig{
		PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if c.User() != "root" {
				return nil, fmt.Errorf("no user %q", c.User())
			}
			for _, k := range keys {
				if bytes.Equal(k.Marshal(), key.Marshal()) {
					return nil, nil
				}
			}
			return nil, errors.New("unknown key")
		},
	}
	config.AddHostKey(hostKey)
	return config, nil
}

// RelaxCollector makes the garbage collector of this process run less often. SSH makes
// garbage of every packet, and the program keeps so little else that collecting would
// take a fifth of its time. In return up to 16 MiB are used while much is sent.
func RelaxCollector() { debug.SetGCPercent(400) }

// peer is who is connected.
type peer struct {
	conn *wire.Conn
	host bool // may do what is smolvm's own
}

// serveClient serves one SSH connection from the network and closes it.
func (s *Server) serveClient(raw net.Conn, config *ssh.ServerConfig) error {
	conn := wire.NewConn(raw)
	defer conn.Close()
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Time{})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go ssh.DiscardRequests(requests)
	s.serveChannels(ctx, &peer{conn: conn}, channels)
	return nil
}

// serveChannels serves what a peer opens until it is gone.
func (s *Server) serveChannels(ctx context.Context, p *peer, channels <-chan ssh.NewChannel) {
	for open := range channels {
		go func() {
			defer s.survive()
			s.channel(ctx, p, open)
		}()
	}
}

func (s *Server) channel(ctx context.Context, p *peer, open ssh.NewChannel) {
	switch t := open.ChannelType(); {
	case t == "session":
		s.session(ctx, p, open)
	case t == guestapi.ChannelSSH && p.host:
		s.sshTunnel(ctx, p, open)
	case t == guestapi.ChannelDial:
		s.tunnel(ctx, p, open)
	case t == guestapi.ChannelDatagrams && p.host:
		s.datagrams(ctx, p, open)
	case t == guestapi.ChannelExec && p.host:
		s.exec(ctx, p, open)
	case t == guestapi.ChannelMain && p.host:
		s.serveMain(ctx, open)
	case t == guestapi.ChannelFiles && p.host:
		s.files(ctx, p, open)
	case t == guestapi.ChannelFolder && p.host:
		s.folder(ctx, p, open)
	default:
		_ = open.Reject(ssh.UnknownChannelType, "unknown channel type")
	}
}

func (s *Server) hostRequest(ctx context.Context, session *wire.Session, own *sync.WaitGroup, req *wire.Request) {
	var reply []byte
	var err error
	after := func() {}
	switch req.Type {
	case guestapi.RequestConfigure:
		err = s.configure(ctx, req.Payload, s.system.Configure)
	case guestapi.RequestClock:
		reply, err = s.clock(req.Payload)
	case guestapi.RequestWatchListeners:
		after = func() { own.Go(func() { s.watch(ctx, session) }) }
	case guestapi.RequestRest:
		err = s.rest(ctx, req.Payload)
	case guestapi.RequestSync:
		s.system.Sync()
	case guestapi.RequestPowerOff:
		after = s.system.PowerOff
	default:
		err = errors.New("unknown request")
	}
	if err != nil {
		reply = refusal(err)
	}
	_ = req.Reply(err == nil, reply)
	after()
}

func (s *Server) clock(payload []byte) (reply []byte, err error) {
	var c guestapi.Clock
	if err := guestapi.Decode(payload, &c); err != nil {
		return nil, fmt.Errorf("read clock: %w", err)
	}
	now, err := s.system.StepClock(c.Step)
	if err != nil {
		return nil, err
	}
	return guestapi.Encode(&guestapi.Clock{Time: now}), nil
}

func (s *Server) configure(ctx context.Context, payload []byte, apply func(context.Context, guestapi.Identity) error) error {
	came := time.Now()
	var id guestapi.Identity
	if err := guestapi.Decode(payload, &id); err != nil {
		return fmt.Errorf("read identity: %w", err)
	}
	if err := s.system.Ready(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	s.identity = guestapi.Identity{Env: id.Env, HostKey: id.HostKey, AuthorizedKeys: id.AuthorizedKeys}
	s.mu.Unlock()
	if !id.Time.IsZero() {
		id.Time = id.Time.Add(time.Since(came))
	}
	return apply(ctx, id)
}

func (s *Server) environment() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity.Env
}

// survive keeps a fault in the handling of one connection from ending PID 1, and
// the whole guest with it.
func (s *Server) survive() {
	if fault := recover(); fault != nil {
		s.log.Error("a handler failed", "fault", fault, "stack", string(debug.Stack()))
	}
}
