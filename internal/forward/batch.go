package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
)

// batch is forwards that are opened together, or not at all. Manager.mu is held
// for as long as it lasts.
type batch struct {
	m      *Manager
	opened []*opening
}

// opening is a forward that is being opened.
type opening struct {
	*forward
	req   Request
	taken *PortInUseError // why it did not get the host port that it wanted
}

// open returns a forward for each request: one that exists, or one that holds its
// host port and is in the kernel's table if it is to be.
func (b *batch) open(ctx context.Context, reqs []Request) ([]*forward, error) {
	all := make([]*forward, len(reqs))
	for i, req := range reqs {
		f := b.m.existing(req)
		if f == nil {
			var err error
			if f, err = b.begin(ctx, req); err != nil {
				return nil, err
			}
		} else if req.Transport != "" && req.Transport != f.Transport {
			return nil, &TransportError{
				Transport: req.Transport,
				Err:       fmt.Errorf("guest port %d is exposed by %s already", f.GuestPort, f.Transport),
			}
		}
		all[i] = f
	}
	return all, b.claim(ctx)
}

// begin takes a host port for a request.
func (b *batch) begin(ctx context.Context, req Request) (*forward, error) {
	transport, reason, err := b.m.choose(req.target(), req.Transport)
	if err != nil {
		return nil, err
	}
	s, taken, err := b.m.takeSeat(ctx, req, req.HostPort)
	if err != nil {
		return nil, err
	}
	f := &forward{
		Forward: Forward{
			Pair:      Pair{HostPort: s.port, GuestPort: req.GuestPort, Protocol: req.protocol()},
			Transport: transport,
		},
		asked: req.Transport,
		why:   reason,
		seat:  s,
	}
	b.m.put(f)
	b.opened = append(b.opened, &opening{f, req, taken})
	return f, nil
}

// claim puts the forwards' elements into the table, and makes sure that nobody
// else's element is there for a port that has none.
func (b *batch) claim(ctx context.Context) error {
	if b.m.cfg.Table == nil {
		return nil
	}
	for range anyPortAttempts + len(b.opened) {
		o, holder, err := b.tryClaim(ctx)
		if o == nil {
			return err
		}
		// Somebody's element is there though nobody held the port: that of a guest
		// whose owner died.
		busy := &PortInUseError{Port: o.HostPort, Protocol: o.Protocol, Holder: holder}
		if o.req.wantsHostPort() && o.req.Strict {
			return busy
		}
		if err := b.move(ctx, o, busy); err != nil {
			return err
		}
	}
	return errors.New("host ports keep being taken by others")
}

// tryClaim is claim up to the first forward whose port belongs to another guest. It
// returns that, and who has its port.
func (b *batch) tryClaim(ctx context.Context) (*opening, string, error) {
	var mappings []Mapping
	for _, o := range b.opened {
		if o.Transport == NFTables {
			mappings = append(mappings, b.m.mapping(o.forward))
			continue
		}
		guest, err := b.m.cfg.Table.Lookup(ctx, o.Protocol, uint16(o.HostPort))
		switch {
		case ctx.Err() != nil:
			return nil, "", ctx.Err()
		case err != nil || !guest.IsValid():
			// A table that cannot be read forwards nothing that we know of.
		case guest.Addr() != b.m.cfg.Guest:
			return o, "the VM at " + guest.Addr().String(), nil
		default:
			// The guest's former owner left it. Its connections live on.
			if err := b.m.cfg.Table.Delete(ctx, Mapping{o.Protocol, uint16(o.HostPort), guest}); err != nil {
				return nil, "", err
			}
		}
	}
	if len(mappings) == 0 {
		return nil, "", nil
	}
	err := b.m.cfg.Table.Add(ctx, mappings...)
	var mapped *MappedError
	switch {
	case err == nil:
		for _, o := range b.opened {
			o.mapped = o.Transport == NFTables
			o.flows = o.mapped
		}
		return nil, "", nil
	case errors.As(err, &mapped):
		for _, o := range b.opened {
			if o.place() == (place{mapped.Mapping.Protocol, int(mapped.Mapping.HostPort)}) {
				return o, "another VM", nil
			}
		}
		return nil, "", err
	}
	return nil, "", b.tunnel(ctx, err)
}

// tunnel has the tunnel do what the table, for the reason err, does not.
func (b *batch) tunnel(ctx context.Context, err error) error {
	for _, o := range b.opened {
		if o.asked == NFTables {
			return &TransportError{Transport: NFTables, Err: err}
		}
	}
	if ctx.Err() != nil || b.m.cfg.Tunnel == nil {
		return err
	}
	for _, o := range b.opened {
		if o.Transport == NFTables {
			o.Transport, o.why = SSHTunnel, err.Error()
		}
	}
	return nil
}

// move gives a forward another host port.
func (b *batch) move(ctx context.Context, o *opening, busy *PortInUseError) error {
	from := 0
	if o.req.wantsHostPort() {
		from = o.HostPort + 1
		if o.taken == nil {
			o.taken = busy
		}
	}
	s, _, err := b.m.takeSeat(ctx, o.req, from)
	if err != nil {
		return err
	}
	o.seat.release() // not before another one is held, or it might be the same
	b.m.drop(o.forward)
	o.seat, o.HostPort = s, s.port
	b.m.put(o.forward)
	return nil
}

// serve begins to serve what was opened, and says so.
func (b *batch) serve() {
	for _, o := range b.opened {
		f := o.forward
		f.direct.Store(f.Transport == NFTables)
		f.service = f.seat.serve(f)
		b.m.assess(f)
		b.m.emit(Exposed, f)
		if o.taken != nil {
			WarnMoved(b.m.log, o.req, f.Pair, o.taken.Holder)
		}
		b.m.tell(f)
	}
}

// WarnMoved says that a forward did not get the host port that was asked for, which holder
// has.
func WarnMoved(log *slog.Logger, req Request, got Pair, holder string) {
	log.Warn("host port is in use, took another", "wanted", req.HostPort, "host_port", got.HostPort,
		"guest_port", got.GuestPort, "proto", got.Protocol, "holder", holder)
}

// abandon gives back what was taken. Nothing of it is in the table.
func (b *batch) abandon() {
	for _, o := range b.opened {
		o.seat.release()
		b.m.drop(o.forward)
	}
}

// tell logs a new forward, and once why they are not the kernel's.
func (m *Manager) tell(f *forward) {
	attrs := []any{"transport", f.Transport, "host_port", f.HostPort, "guest_port", f.GuestPort, "proto", f.Protocol}
	if f.Reason != "" {
		attrs = append(attrs, "reason", f.Reason)
	}
	m.log.Info("exposed", attrs...)
	if f.Transport == SSHTunnel && f.asked == "" && !m.told && m.proof.err != nil {
		m.told = true
		m.log.Warn("ports are forwarded through the guest channel, which is slower", "reason", m.proof.err)
	}
}
