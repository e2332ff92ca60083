package forward

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// teardownTimeout bounds what is done to clean up after a caller's context ended.
const teardownTimeout = 5 * time.Second

// detach returns a context for work that must be finished though ctx has ended.
func detach(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), teardownTimeout)
}

// Unexpose ends forwards: when it returns nil, the host ports are free, the forwards'
// connections are dead, and nothing of them reaches the guest any more. What
// is not exposed needs no ending and is no error. It is finished even if
// ctx ends. After an error all are as they were, or without connections; it may be called
// again.
func (m *Manager) Unexpose(ctx context.Context, pairs ...Pair) error {
	for _, p := range pairs {
		if err := p.Validate(); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []*forward
	for _, p := range pairs {
		p.Protocol = cmp.Or(p.Protocol, TCP)
		if f := m.forwards[p.place()]; f != nil && f.Pair == p && !slices.Contains(found, f) {
			found = append(found, f)
		}
	}
	if err := m.end(ctx, found...); err != nil {
		return fmt.Errorf("unexpose port: %w", err)
	}
	for _, f := range found {
		m.log.Info("unexposed", "host_port", f.HostPort, "guest_port", f.GuestPort, "proto", f.Protocol)
	}
	return nil
}

// end takes forwards down. The sockets go last, so that at no moment somebody
// else has a port while the kernel still sends it to the guest. If that
// fails, the forwards stay, carried by their sockets.
func (m *Manager) end(ctx context.Context, forwards ...*forward) error {
	ctx, cancel := detach(ctx)
	defer cancel()
	var mapped, flows []Mapping
	for _, f := range forwards {
		if f.mapped {
			mapped = append(mapped, m.mapping(f))
		}
		if f.flows {
			flows = append(flows, m.mapping(f))
		}
	}
	if len(mapped) > 0 {
		if err := m.cfg.Table.Delete(ctx, mapped...); err != nil {
			return err
		}
		for _, f := range forwards {
			f.mapped = false
		}
	}
	if len(flows) > 0 {
		if err := m.cfg.Table.EndFlows(ctx, flows...); err != nil {
			return err
		}
	}
	for _, f := range forwards {
		f.service.close()
		m.drop(f)
		m.emit(Unexposed, f)
	}
	return nil
}

// Close ends all forwards. It may be called again; after an error it tries
// again what failed.
func (m *Manager) Close() error {
	m.cancel()
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.endProof()
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.end(context.Background(), slices.Collect(maps.Values(m.forwards))...)
	for _, f := range m.forwards {
		f.service.close() // the guest is gone: whatever the table says, nobody answers here
	}
	m.buffers.close()
	for w := range m.watchers {
		w.end()
	}
	if err != nil {
		return fmt.Errorf("close port forwarding: %w", err)
	}
	return nil
}
