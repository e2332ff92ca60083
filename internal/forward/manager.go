package forward

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// Manager keeps the forwards of one guest. Its methods may be called
// concurrently. Close it when the guest is gone.
type Manager struct {
	cfg    Config
	log    *slog.Logger
	ctx    context.Context // ends when the manager closes
	cancel context.CancelFunc
	proof  proof
	// buffers are shared by all forwards: idle ones need none.
	buffers *sync.Pool

	// mu is held while a forward changes, the kernel included, so that all see
	// either the old state or the new.
	mu       sync.Mutex
	closed   bool
	forwards map[int]*forward // by host port
	scopes   map[uint16]guestapi.Scope
	told     bool // the reason for tunnels was logged
}

// forward is one exposed port.
type forward struct {
	Forward
	asked  Transport
	server *server
	direct atomic.Bool // which way the server's connections go
	mapped bool        // the element is in the table
	flows  bool        // connections made through the element may live
}

// NewManager returns a manager with no forwards. It starts nothing.
func NewManager(cfg Config) *Manager {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Direct == nil && cfg.Guest.IsValid() {
		cfg.Direct = Direct(cfg.Guest)
	}
	cfg.Probe = cfg.Probe.orDefault()
	m := &Manager{
		cfg:      cfg,
		log:      cfg.Log.With("vm", cfg.VM),
		forwards: make(map[int]*forward),
		scopes:   make(map[uint16]guestapi.Scope),
		buffers:  newBuffers(),
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.proof.done = make(chan struct{})
	return m
}

// Expose makes a guest port answer on the host's localhost, whether or not the
// guest listens on it yet.
//
// A host port that is busy is stepped around, to the next free one above it or
// else any, and the Forward says which; a Strict request fails with a
// *PortInUseError instead. Asking again for a pair of ports that is exposed, or
// for an exposed guest port with no host port, returns the forward that is.
func (m *Manager) Expose(ctx context.Context, req Request) (Forward, error) {
	if err := req.Validate(); err != nil {
		return Forward{}, err
	}
	if req.Transport != SSHTunnel {
		// The result is read again by choose; here only the caller's patience counts.
		if err := m.Prove(ctx); err != nil && ctx.Err() != nil {
			return Forward{}, fmt.Errorf("expose port: %w", ctx.Err())
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return Forward{}, fmt.Errorf("expose port: %w", ErrClosed)
	}
	if f := m.existing(req); f != nil {
		if req.Transport != "" && req.Transport != f.Transport {
			return Forward{}, fmt.Errorf("expose port: %w", &TransportError{
				Transport: req.Transport,
				Err:       fmt.Errorf("guest port %d is exposed by %s already", f.GuestPort, f.Transport),
			})
		}
		return f.Forward, nil
	}
	transport, reason, err := m.choose(uint16(req.GuestPort), req.Transport)
	if err != nil {
		return Forward{}, fmt.Errorf("expose port: %w", err)
	}
	f, err := m.open(ctx, req, transport, reason)
	if err != nil {
		return Forward{}, fmt.Errorf("expose port: %w", err)
	}
	m.forwards[f.HostPort] = f
	m.tell(f)
	return f.Forward, nil
}

// existing returns the forward that req asks for again.
func (m *Manager) existing(req Request) *forward {
	if req.wantsHostPort() {
		if f := m.forwards[req.HostPort]; f != nil && f.GuestPort == req.GuestPort {
			return f
		}
		return nil
	}
	var first *forward
	for _, f := range m.forwards {
		if f.GuestPort == req.GuestPort && (first == nil || f.HostPort < first.HostPort) {
			first = f
		}
	}
	return first
}

// tell logs a new forward, and once why they are not the kernel's.
func (m *Manager) tell(f *forward) {
	attrs := []any{"transport", f.Transport, "host_port", f.HostPort, "guest_port", f.GuestPort}
	if f.Reason != "" {
		attrs = append(attrs, "reason", f.Reason)
	}
	m.log.Info("exposed", attrs...)
	if f.Transport == SSHTunnel && f.asked == "" && !m.told {
		if err := m.Prove(m.ctx); err != nil {
			m.told = true
			m.log.Warn("ports are forwarded through the guest channel, which is slower", "reason", err)
		}
	}
}

// open finds a host port for req and begins to serve it.
func (m *Manager) open(ctx context.Context, req Request, transport Transport, reason string) (*forward, error) {
	var busy *PortInUseError
	f, err := m.openAt(ctx, req, req.HostPort, transport, reason)
	if !req.wantsHostPort() {
		for range anyPortAttempts {
			if !errors.As(err, &busy) {
				break
			}
			f, err = m.openAt(ctx, req, 0, transport, reason)
		}
		return f, err
	}
	if !errors.As(err, &busy) || req.Strict {
		return f, err
	}
	taken := busy
	for port := req.HostPort + 1; port <= 65535 && errors.As(err, &busy); port++ {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		f, err = m.openAt(ctx, req, port, transport, reason)
	}
	if errors.As(err, &busy) {
		f, err = m.openAt(ctx, req, 0, transport, reason)
	}
	if err != nil {
		return nil, err
	}
	m.log.Warn("host port is in use, took another", "wanted", req.HostPort, "host_port", f.HostPort,
		"guest_port", f.GuestPort, "holder", taken.Holder)
	return f, nil
}

// openAt begins to serve one host port, 0 for any.
func (m *Manager) openAt(ctx context.Context, req Request, port int, transport Transport, reason string) (*forward, error) {
	reserved, err := reserve(port)
	if err != nil {
		return nil, err
	}
	f := &forward{
		asked: req.Transport,
		Forward: Forward{
			HostPort: reserved.port, GuestPort: req.GuestPort,
			Protocol: TCP, Transport: transport, Reason: reason,
		},
	}
	if err := m.claim(ctx, f); err != nil {
		reserved.close()
		return nil, err
	}
	f.direct.Store(f.Transport == NFTables)
	f.server = serve(reserved, m.log, m.buffers, func(ctx context.Context) (Conn, error) { return m.dial(ctx, f) })
	return f, nil
}

// claim puts the forward's element into the table, or makes sure that nobody
// else's element is there for its port.
func (m *Manager) claim(ctx context.Context, f *forward) error {
	if m.cfg.Table == nil {
		return nil
	}
	if f.Transport == SSHTunnel {
		guest, err := m.cfg.Table.Lookup(ctx, TCP, uint16(f.HostPort))
		if err == nil && guest.IsValid() {
			return &PortInUseError{Port: f.HostPort, Holder: "the VM at " + guest.Addr().String()}
		}
		return ctx.Err() // a table that cannot be read forwards nothing that we know of
	}
	err := m.cfg.Table.Add(ctx, m.mapping(f))
	switch {
	case err == nil:
		f.mapped, f.flows = true, true
		return nil
	case errors.Is(err, ErrMapped):
		return &PortInUseError{Port: f.HostPort, Holder: "another VM"}
	case f.asked == NFTables:
		return &TransportError{Transport: NFTables, Err: err}
	case ctx.Err() != nil, m.cfg.Tunnel == nil:
		return err
	}
	f.Transport, f.Reason = SSHTunnel, err.Error()
	return nil
}

func (m *Manager) mapping(f *forward) Mapping {
	return Mapping{
		Protocol: f.Protocol, HostPort: uint16(f.HostPort),
		Guest: netip.AddrPortFrom(m.cfg.Guest, uint16(f.GuestPort)),
	}
}

// dial connects the listener's own connections to the guest.
func (m *Manager) dial(ctx context.Context, f *forward) (Conn, error) {
	port := uint16(f.GuestPort)
	if !f.direct.Load() || m.cfg.Direct == nil {
		if m.cfg.Tunnel == nil {
			return nil, errNoTunnel
		}
		return m.cfg.Tunnel(ctx, port)
	}
	conn, err := m.cfg.Direct(ctx, port)
	if errors.Is(err, unix.ECONNREFUSED) && f.asked == "" && m.cfg.Tunnel != nil {
		// Perhaps the service is on the guest's loopback and the guest has not said so yet.
		return m.cfg.Tunnel(ctx, port)
	}
	return conn, err
}

// Forwards returns what is exposed now, ordered by host port.
func (m *Manager) Forwards() []Forward {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]Forward, 0, len(m.forwards))
	for _, f := range m.forwards {
		list = append(list, f.Forward)
	}
	slices.SortFunc(list, func(a, b Forward) int { return cmp.Compare(a.HostPort, b.HostPort) })
	return list
}
