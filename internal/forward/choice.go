package forward

import (
	"context"
	"errors"
	"maps"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// choose says how a guest port is to be forwarded now, and why not by the
// kernel. The proof must be finished unless the tunnel was asked for. The
// caller holds mu.
func (m *Manager) choose(to target, asked Transport) (Transport, string, error) {
	if asked == SSHTunnel {
		if m.cfg.Tunnel == nil {
			return "", "", &TransportError{Transport: SSHTunnel, Err: errNoTunnel}
		}
		return SSHTunnel, "asked for", nil
	}
	obstacle := m.obstacle(to)
	switch {
	case obstacle == nil:
		return NFTables, "", nil
	case asked == NFTables:
		return "", "", &TransportError{Transport: NFTables, Err: obstacle}
	case m.cfg.Tunnel == nil:
		return "", "", &TransportError{Transport: SSHTunnel, Err: errors.Join(errNoTunnel, obstacle)}
	}
	return SSHTunnel, obstacle.Error(), nil
}

// obstacle is why the kernel cannot forward to a port of the guest.
func (m *Manager) obstacle(to target) error {
	switch {
	case m.proof.err != nil:
		return m.proof.err
	case m.scopes[to] == guestapi.ScopeLoopback:
		return errLoopbackOnly
	}
	return nil
}

// SetListeners takes in the guest's report of its listeners. Forwards of ports
// that the guest serves on its own loopback only move to the tunnel, and back
// when it serves them on its address. A port that is not in the report stays as
// it was: its server is most likely being restarted. Connections that exist
// are left alone.
func (m *Manager) SetListeners(report guestapi.Listeners) {
	now := make(map[target]guestapi.Scope, len(report.TCP)+len(report.UDP))
	for port, scope := range report.TCP {
		now[target{TCP, port}] = scope
	}
	for port, scope := range report.UDP {
		now[target{UDP, port}] = scope
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	scopes := maps.Clone(now)
	for _, f := range m.forwards {
		_, listens := now[f.target()]
		if old, listened := m.scopes[f.target()]; listened && !listens {
			scopes[f.target()] = old
		}
	}
	m.listening, m.scopes = now, scopes
	m.settleAll()
}

// SetTunnel takes in whether the Tunnel works: err says why it does not. It begins
// as one that does.
func (m *Manager) SetTunnel(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.tunnelDown = err
	m.settleAll()
}

// SetGuest takes in whether the guest runs: err says why it does not. It begins as one
// that does. Forwards stay as they are meanwhile, and clients wait.
func (m *Manager) SetGuest(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.guestDown = err
	if err == nil {
		m.proveAgain() // it may not have been possible meanwhile
	}
	m.settleAll()
}

// settleAll brings all forwards to the state that is right now.
func (m *Manager) settleAll() {
	for _, f := range m.forwards {
		before := f.Forward
		m.move(f)
		m.assess(f)
		if f.Forward != before {
			m.emit(Changed, f)
		}
	}
}

// assess finds out what a client of a forward can expect.
func (m *Manager) assess(f *forward) {
	_, listens := m.listening[f.target()]
	var obstacle error
	switch {
	case m.guestDown != nil:
		obstacle = m.guestDown
	case f.Transport == SSHTunnel:
		obstacle = m.tunnelDown
	case f.asked == NFTables:
		obstacle = m.obstacle(f.target())
	}
	switch {
	case obstacle != nil:
		f.Health, f.Reason = Down, obstacle.Error()
	case listens:
		f.Health, f.Reason = Active, f.why
	default:
		f.Health, f.Reason = Waiting, f.why
	}
}

// move brings a forward to the transport that is right for it now. A forward
// that was asked for with a transport stays with that.
func (m *Manager) move(f *forward) {
	if f.asked != "" || !m.proven() {
		return
	}
	transport, reason, err := m.choose(f.target(), "")
	if err != nil {
		return
	}
	if transport == f.Transport {
		f.why = reason
		return
	}
	ctx, cancel := context.WithTimeout(m.ctx, teardownTimeout)
	defer cancel()
	if transport == NFTables {
		err = m.cfg.Table.Add(ctx, m.mapping(f))
	} else {
		err = m.unmap(ctx, f)
	}
	if err != nil {
		m.log.Warn("could not change a forward's transport", "host_port", f.HostPort, "guest_port", f.GuestPort,
			"transport", f.Transport, "wanted", transport, "error", err)
		return
	}
	f.mapped = transport == NFTables
	f.flows = f.flows || f.mapped
	f.direct.Store(f.mapped)
	f.Transport, f.why = transport, reason
	if reason == "" {
		reason = "the kernel reaches the guest's service"
	}
	m.log.Info("transport changed", "transport", transport, "host_port", f.HostPort, "guest_port", f.GuestPort,
		"proto", f.Protocol, "reason", reason)
}

// unmap takes a forward out of the table and keeps what was counted there.
func (m *Manager) unmap(ctx context.Context, f *forward) error {
	counted, err := m.cfg.Table.Traffic(ctx, m.mapping(f))
	if err != nil {
		return err
	}
	if err := m.cfg.Table.Delete(ctx, m.mapping(f)); err != nil {
		return err
	}
	counted[0].Open = 0 // they live on, and are counted as long as they do
	f.Traffic = f.Add(counted[0])
	if f.Protocol == UDP {
		// A client that goes on sending would keep its old way for ever.
		return m.cfg.Table.EndFlows(ctx, m.mapping(f))
	}
	return nil
}

// proven tells whether a proof is finished, whatever it found.
func (m *Manager) proven() bool {
	select {
	case <-m.proof.done:
		return true
	default:
		return false
	}
}
