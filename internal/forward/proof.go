package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	proofTimeout = 3 * time.Second
	// refusedGrace is how long a refused probe is repeated: the guest's server may be
	// a moment late, but a host that does not rewrite refuses for ever.
	refusedGrace = 500 * time.Millisecond
	refusedPause = 20 * time.Millisecond
)

// proof is whether the kernel forwards on this host, found out once.
type proof struct {
	once sync.Once
	done chan struct{}
	err  error // valid once done is closed
}

// Prove makes a real connection through the kernel's forwarding, once in the
// Manager's life, and returns nil if the guest answered, else why forwards
// will be tunnels. Later calls return the first one's result. Expose waits for
// the proof, so callers who begin it early, in the background, get a faster
// first Expose. If ctx ends, the proof goes on for others.
func (m *Manager) Prove(ctx context.Context) error {
	m.proof.once.Do(func() {
		if m.cfg.Table == nil {
			m.proof.err = errors.Join(m.cfg.TableUnavailable)
			if m.proof.err == nil {
				m.proof.err = errNoTable
			}
			close(m.proof.done)
			return
		}
		go func() {
			defer close(m.proof.done)
			ctx, cancel := context.WithTimeout(m.ctx, proofTimeout)
			defer cancel()
			m.proof.err = m.probe(ctx)
		}()
	})
	select {
	case <-m.proof.done:
		return m.proof.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// probe maps a port to the guest's own server and reads its banner through it.
func (m *Manager) probe(ctx context.Context) (err error) {
	mapping, release, err := m.mapProbe(ctx)
	if err != nil {
		return fmt.Errorf("prove forwarding: %w", err)
	}
	defer release()
	defer func() {
		// The probe's connections were reset, so there is nothing else to end.
		ctx, cancel := detach(ctx)
		defer cancel()
		err = errors.Join(err, m.cfg.Table.Delete(ctx, mapping))
	}()
	began := time.Now()
	for {
		err := readBanner(ctx, mapping.HostPort, m.cfg.Probe.Banner)
		if !errors.Is(err, unix.ECONNREFUSED) || time.Since(began) > refusedGrace {
			if err != nil {
				return fmt.Errorf("the kernel's forwarding does not reach the guest: %w", err)
			}
			return nil
		}
		select {
		case <-time.After(refusedPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// mapProbe maps a port that it holds until release is called.
func (m *Manager) mapProbe(ctx context.Context) (mapping Mapping, release func(), err error) {
	for range anyPortAttempts {
		var port uint16
		if port, release, err = holdPort(); err != nil {
			return Mapping{}, nil, err
		}
		mapping = Mapping{Protocol: TCP, HostPort: port, Guest: netip.AddrPortFrom(m.cfg.Guest, m.cfg.Probe.Port)}
		if err = m.cfg.Table.Add(ctx, mapping); err == nil {
			return mapping, release, nil
		}
		release()
		if !errors.Is(err, ErrMapped) {
			break
		}
	}
	return Mapping{}, nil, err
}

// holdPort binds a port of 127.0.0.1 and does not listen, so that connections which
// are not rewritten are refused.
func holdPort() (uint16, func(), error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("open socket: %w", err)
	}
	release := func() { unix.Close(fd) }
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		release()
		return 0, nil, fmt.Errorf("bind any port: %w", err)
	}
	addr, err := unix.Getsockname(fd)
	if err != nil {
		release()
		return 0, nil, fmt.Errorf("read socket's port: %w", err)
	}
	return uint16(addr.(*unix.SockaddrInet4).Port), release, nil
}

func readBanner(ctx context.Context, port uint16, want string) error {
	conn, err := Direct(netip.AddrFrom4([4]byte{127, 0, 0, 1}))(ctx, port)
	if err != nil {
		return err
	}
	defer abort(conn)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("no answer: %w", ctx.Err())
		}
		return fmt.Errorf("read greeting: %w", err)
	}
	if string(got) != want {
		return fmt.Errorf("something else answered: %q", got)
	}
	return nil
}
