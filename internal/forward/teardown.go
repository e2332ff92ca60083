package forward

import (
	"context"
	"errors"
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

// Unexpose ends a forward: when it returns nil, the host port is free, the forward's
// connections are dead, and nothing of them reaches the guest any more. What
// is not exposed needs no ending and is no error. It is finished even if
// ctx ends. After an error it may be called again.
func (m *Manager) Unexpose(ctx context.Context, hostPort, guestPort int) error {
	req := Request{GuestPort: guestPort, HostPort: hostPort, HostPortSet: true}
	if err := req.Validate(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.forwards[hostPort]
	if f == nil || f.GuestPort != guestPort {
		return nil
	}
	if err := m.end(ctx, f); err != nil {
		return fmt.Errorf("unexpose port: %w", err)
	}
	m.log.Info("unexposed", "host_port", hostPort, "guest_port", guestPort)
	return nil
}

// end takes forwards down. The listeners go last, so that at no moment somebody
// else has a port while the kernel still sends it to the guest. A forward that
// could not be taken down stays.
func (m *Manager) end(ctx context.Context, forwards ...*forward) error {
	ctx, cancel := detach(ctx)
	defer cancel()
	var errs []error
	var flows []Mapping
	for _, f := range forwards {
		if f.mapped {
			if err := m.cfg.Table.Delete(ctx, m.mapping(f)); err != nil {
				errs = append(errs, err)
				continue
			}
			f.mapped = false
		}
		if f.flows {
			flows = append(flows, m.mapping(f))
		}
	}
	if len(flows) > 0 {
		if err := m.cfg.Table.EndFlows(ctx, flows...); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	for _, f := range forwards {
		if f.mapped {
			continue
		}
		f.server.close()
		delete(m.forwards, f.HostPort)
	}
	return errors.Join(errs...)
}

// Close ends all forwards. It may be called again; after an error it tries
// again what failed.
func (m *Manager) Close() error {
	m.cancel()
	m.proof.once.Do(func() {
		m.proof.err = ErrClosed
		close(m.proof.done)
	})
	<-m.proof.done
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	all := slices.Collect(maps.Values(m.forwards))
	err := m.end(context.Background(), all...)
	for _, f := range m.forwards {
		f.server.close() // the guest is gone: whatever the table says, nobody answers here
	}
	if err != nil {
		return fmt.Errorf("close port forwarding: %w", err)
	}
	return nil
}
