package forward

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

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
	buffers *buffers

	// mu is held while a forward changes, the kernel included, so that all see
	// either the old state or the new.
	mu       sync.Mutex
	closed   bool
	forwards map[place]*forward
	byTarget map[target][]*forward // the same
	// listening is what the guest said last. scopes is the same, and remembers
	// exposed ports whose servers are being restarted.
	listening, scopes map[target]guestapi.Scope
	tunnelDown        error // why the guest channel carries nothing now
	guestDown         error // why the guest does not run now
	told              bool  // the reason for tunnels was logged
	watchers          map[*watcher]struct{}
}

// place is a port of localhost.
type place struct {
	protocol Protocol
	port     int
}

// target is a port of the guest.
type target struct {
	protocol Protocol
	port     uint16
}

func (p Pair) place() place   { return place{p.Protocol, p.HostPort} }
func (p Pair) target() target { return target{p.Protocol, uint16(p.GuestPort)} }

// forward is one exposed port. The Traffic in it is what the kernel counted before
// the forward last left it.
type forward struct {
	Forward
	asked   Transport
	why     string // why the transport is not NFTables
	seat    seat
	service service
	direct  atomic.Bool // which way the service's connections go
	mapped  bool        // the element is in the table
	flows   bool        // connections made through the element may live
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
		cfg:       cfg,
		log:       cfg.Log.With("vm", cfg.VM),
		forwards:  make(map[place]*forward),
		byTarget:  make(map[target][]*forward),
		listening: make(map[target]guestapi.Scope),
		scopes:    make(map[target]guestapi.Scope),
		watchers:  make(map[*watcher]struct{}),
		buffers:   newBuffers(),
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.proof.done, m.proof.again = make(chan struct{}), make(chan struct{}, 1)
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
	all, err := m.ExposeAll(ctx, []Request{req})
	if err != nil {
		return Forward{}, err
	}
	return all[0], nil
}

// ExposeAll is Expose for many ports. It exposes all of them, with one change of
// the kernel's table, or none.
func (m *Manager) ExposeAll(ctx context.Context, reqs []Request) ([]Forward, error) {
	for _, req := range reqs {
		if err := req.Validate(); err != nil {
			return nil, err
		}
	}
	if err := m.awaitProof(ctx, reqs); err != nil {
		return nil, fmt.Errorf("expose port: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, fmt.Errorf("expose port: %w", ErrClosed)
	}
	b := batch{m: m}
	all, err := b.open(ctx, reqs)
	if err != nil {
		b.abandon()
		return nil, fmt.Errorf("expose port: %w", err)
	}
	b.serve()
	list := make([]Forward, len(all))
	for i, f := range all {
		list[i] = f.Forward
		list[i].Traffic = Traffic{}
	}
	return list, nil
}

// awaitProof waits until it is known whether the kernel forwards, if a request
// depends on it. Only the caller's patience can fail.
func (m *Manager) awaitProof(ctx context.Context, reqs []Request) error {
	for _, req := range reqs {
		if req.Transport == SSHTunnel {
			continue
		}
		if err := m.Prove(ctx); err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		return nil
	}
	return nil
}

// existing returns the forward that req asks for again.
func (m *Manager) existing(req Request) *forward {
	if req.wantsHostPort() {
		if f := m.forwards[place{req.protocol(), req.HostPort}]; f != nil && f.GuestPort == req.GuestPort {
			return f
		}
		return nil
	}
	var first *forward
	for _, f := range m.byTarget[req.target()] {
		if first == nil || f.HostPort < first.HostPort {
			first = f
		}
	}
	return first
}

// put adds a forward to those there are.
func (m *Manager) put(f *forward) {
	m.forwards[f.place()] = f
	m.byTarget[f.target()] = append(m.byTarget[f.target()], f)
}

// drop takes a forward off those there are.
func (m *Manager) drop(f *forward) {
	delete(m.forwards, f.place())
	rest := slices.DeleteFunc(m.byTarget[f.target()], func(other *forward) bool { return other == f })
	if len(rest) == 0 {
		delete(m.byTarget, f.target())
		return
	}
	m.byTarget[f.target()] = rest
}

func (m *Manager) mapping(f *forward) Mapping {
	return Mapping{Protocol: f.Protocol, HostPort: uint16(f.HostPort), Guest: m.address(f.GuestPort)}
}
