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
func (m *Manager) choose(guestPort uint16, asked Transport) (Transport, string, error) {
	if asked == SSHTunnel {
		if m.cfg.Tunnel == nil {
			return "", "", &TransportError{Transport: SSHTunnel, Err: errNoTunnel}
		}
		return SSHTunnel, "asked for", nil
	}
	obstacle := m.proof.err
	if obstacle == nil && m.scopes[guestPort] == guestapi.ScopeLoopback {
		obstacle = errLoopbackOnly
	}
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

// SetListeners takes in the guest's report of its listeners. Forwards of ports
// that the guest serves on its own loopback only move to the tunnel, and back
// when it serves them on its address. A port that is not in the report stays as
// it was: its server is most likely being restarted. Connections that exist
// are left alone.
func (m *Manager) SetListeners(scopes map[uint16]guestapi.Scope) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	scopes = maps.Clone(scopes)
	if scopes == nil {
		scopes = make(map[uint16]guestapi.Scope)
	}
	for _, f := range m.forwards {
		port := uint16(f.GuestPort)
		_, listens := scopes[port]
		if old, listened := m.scopes[port]; listened && !listens {
			scopes[port] = old
		}
	}
	m.scopes = scopes
	for _, f := range m.forwards {
		m.move(f)
	}
}

// move brings a forward to the transport that is right for it now. A forward
// that was asked for with a transport stays with that.
func (m *Manager) move(f *forward) {
	if f.asked != "" || !m.proven() {
		return
	}
	transport, reason, err := m.choose(uint16(f.GuestPort), "")
	if err != nil || transport == f.Transport {
		return
	}
	ctx, cancel := context.WithTimeout(m.ctx, teardownTimeout)
	defer cancel()
	if transport == NFTables {
		err = m.cfg.Table.Add(ctx, m.mapping(f))
	} else {
		err = m.cfg.Table.Delete(ctx, m.mapping(f))
	}
	if err != nil {
		m.log.Warn("could not change a forward's transport", "host_port", f.HostPort, "guest_port", f.GuestPort,
			"transport", f.Transport, "wanted", transport, "error", err)
		return
	}
	f.mapped = transport == NFTables
	f.flows = f.flows || f.mapped
	f.direct.Store(f.mapped)
	f.Transport, f.Reason = transport, reason
	if reason == "" {
		reason = "the guest's service listens on the guest's address"
	}
	m.log.Info("transport changed", "transport", transport, "host_port", f.HostPort, "guest_port", f.GuestPort, "reason", reason)
}

// proven tells whether the proof is finished, whatever it found.
func (m *Manager) proven() bool {
	select {
	case <-m.proof.done:
		return true
	default:
		return false
	}
}
