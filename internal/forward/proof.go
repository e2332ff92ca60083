package forward

import (
	"cmp"
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
	// explainTimeout bounds the search for who drops packets.
	explainTimeout = 3 * time.Second
	// refusedGrace is how long a refused probe is repeated: the guest's server may be
	// a moment late, but a host that does not rewrite refuses for ever. So is one that was
	// aborted, as by another process that ends the connections of a forward which had the port.
	refusedGrace = 500 * time.Millisecond
	refusedPause = 20 * time.Millisecond
	// A proof is made again now and then, since not every firewall tells of its changes:
	// after a failure soon, and then less and less often.
	firstRetry = 2 * time.Second
	lastRetry  = time.Minute
)

// proof is whether the kernel forwards on this host. It is found out when that is first
// asked, and again whenever the host's firewall may have changed.
type proof struct {
	begin sync.Once
	done  chan struct{}  // closed after the first time
	again chan struct{}  // holds a token when it is to be made again at once
	ended sync.WaitGroup // the goroutine that makes it

	err error // why the kernel does not; Manager.mu guards it
}

// Prove makes a real connection through the kernel's forwarding, once, and
// returns nil if the guest answered, else why forwards are tunnels. Later calls return
// what was found last. Expose begins the first proof and waits for it. If ctx ends, the
// proof goes on for others.
func (m *Manager) Prove(ctx context.Context) error {
	m.proof.begin.Do(func() {
		if m.cfg.Table == nil {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.proof.err = cmp.Or(m.cfg.TableUnavailable, errNoTable)
			close(m.proof.done)
			return
		}
		m.proof.ended.Go(m.keepProving)
	})
	select {
	case <-m.proof.done:
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.proof.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// keepProving makes the first proof, and all others until the manager closes.
func (m *Manager) keepProving() {
	if m.cfg.Firewall != nil {
		stop, err := m.cfg.Firewall.Watch(m.proveAgain)
		if err != nil {
			m.log.Warn("changes of the host's firewall will be noticed late", "error", err)
		} else {
			defer stop()
		}
	}
	var err error
	if m.cfg.Adopted {
		m.proveAgain() // as soon as the guest runs; nobody need wait for it
	} else {
		err = m.makeProof(true)
	}
	close(m.proof.done)
	retry := firstRetry
	for {
		pause := retry
		if err == nil {
			pause, retry = lastRetry, firstRetry
		}
		changed := false
		select {
		case <-m.proof.again:
			changed, retry = true, firstRetry
		case <-time.After(pause):
			retry = min(2*retry, lastRetry)
		case <-m.ctx.Done():
			return
		}
		if changed {
			m.remindAll()
		}
		if m.guestRuns() {
			err = m.makeProof(changed)
		}
	}
}

// remindAll tells a firewall that has changed of the connections that there are.
func (m *Manager) remindAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.forwards {
		if f.service != nil {
			f.service.remind()
		}
	}
}

// proveAgain has a proof made soon.
func (m *Manager) proveAgain() {
	select {
	case m.proof.again <- struct{}{}:
	default:
	}
}

// makeProof makes a proof, and moves the forwards to where it says that they belong. If
// nothing has changed, a failure is not explained again.
func (m *Manager) makeProof(changed bool) error {
	ctx, cancel := context.WithTimeout(m.ctx, proofTimeout)
	defer cancel()
	err := m.probe(ctx, changed)
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.proof.err
	switch {
	case m.ctx.Err() != nil:
		m.proof.err = ErrClosed // what the proof found may have come of that
		return ErrClosed
	case m.guestDown != nil && m.proven():
		return before // it says nothing
	case err != nil && before != nil && !changed:
		return before
	}
	m.proof.err = err
	switch {
	case !m.proven():
	case before == nil && err != nil:
		m.log.Warn("the kernel's forwarding works no longer", "reason", err)
	case before != nil && err == nil:
		m.log.Info("the kernel's forwarding works again")
	}
	m.settleAll()
	return err
}

func (m *Manager) guestRuns() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.guestDown == nil
}

// endProof ends proofs that are under way, and keeps any other from beginning.
// Manager.ctx has ended.
func (m *Manager) endProof() {
	m.proof.begin.Do(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.proof.err = ErrClosed
		close(m.proof.done)
	})
	m.proof.ended.Wait()
}

// probe maps a port to the guest's own server and reads its banner through it.
func (m *Manager) probe(ctx context.Context, explain bool) (err error) {
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
		again := errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNABORTED)
		if !again || time.Since(began) > refusedGrace {
			if err != nil && explain {
				return m.explain(ctx, mapping, err)
			}
			return err
		}
		select {
		case <-time.After(refusedPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// explain says why a probe failed.
func (m *Manager) explain(ctx context.Context, mapping Mapping, err error) error {
	err = fmt.Errorf("the kernel's forwarding does not reach the guest: %w", err)
	if m.cfg.Firewall == nil || m.ctx.Err() != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), explainTimeout)
	defer cancel()
	if who := m.cfg.Firewall.Explain(ctx, mapping); who != "" {
		return fmt.Errorf("the kernel's forwarding does not reach the guest: %s", who)
	}
	return err
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
	conn, err := Direct(netip.AddrFrom4([4]byte{127, 0, 0, 1})).DialStream(ctx, port)
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
