package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/smolvm/smolvm/internal/logfile"
	"github.com/smolvm/smolvm/internal/sockdir"
	"github.com/smolvm/smolvm/internal/timing"
	"github.com/smolvm/smolvm/internal/vmm"
)

// starter starts one machine, in two attempts if need be.
type starter struct {
	driver   *Driver
	binary   string
	launch   launch
	console  io.Writer // gets what the console's log gets; must not fail; may be nil
	isolated bool      // in namespaces of its own
}

// refusedError is the end of a QEMU that did not get as far as its monitor.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// mayNotIsolate tells whether an attempt may have failed because QEMU was to
// run in namespaces of its own: they cannot be had, or files can only be opened
// with the capabilities that root loses there.
func mayNotIsolate(err error) bool {
	var refused *refusedError
	if errors.As(err, &refused) {
		return strings.Contains(err.Error(), "Permission denied")
	}
	return isolationRefused(err)
}

// start makes one attempt. If it fails, nothing is left of it but the logs.
func (s *starter) start(ctx context.Context) (*machine, error) {
	m := newMachine(s.driver.opts.Log, s.launch.Dir)
	monitor, state, err := s.run(ctx, m)
	if err != nil {
		if m.egress != nil {
			err = errors.Join(err, m.egress.close())
		}
		if m.console != nil {
			m.console.Close()
		}
		if m.stderr != nil {
			m.stderr.Close()
		}
		return nil, errors.Join(err, removeSockets(m.dir))
	}
	timing.End(ctx, "process")
	go m.supervise()
	if m.egress != nil {
		go m.egress.watch(m.process.done)
	}
	err = m.meet(ctx, monitor)
	timing.End(ctx, "monitor")
	if err == nil && s.launch.From != nil {
		err = m.restore(ctx, state, s.launch.From.Restored)
		timing.End(ctx, "restore")
	}
	if err != nil {
		return nil, s.explain(ctx, m, err)
	}
	return m, nil
}

// run starts the process, and returns a connection to its monitor and the descriptor that a saved
// state has in it. What QEMU gets of ours is closed here in any case.
func (s *starter) run(ctx context.Context, m *machine) (monitor net.Conn, state int, err error) {
	var given []*os.File
	defer func() {
		for _, f := range given {
			err = errors.Join(err, f.Close())
		}
	}()
	dir, err := sockdir.Open(m.dir)
	if err != nil {
		return nil, 0, fmt.Errorf("open machine's directory: %w", err)
	}
	defer dir.Close() //nolint:errcheck // only looked things up in
	var files inheritance
	give := func(f *os.File, err error) (int, error) {
		if err != nil {
			return 0, err
		}
		given = append(given, f)
		return files.add(f), nil
	}
	l := s.launch
	if l.Monitor, err = give(dir.Listen(ctx, monitorSocket)); err != nil {
		return nil, 0, err
	}
	if l.Channel, err = give(dir.Listen(ctx, channelSocket)); err != nil {
		return nil, 0, err
	}
	if l.Console, err = give(dir.Listen(ctx, consoleSocket)); err != nil {
		return nil, 0, err
	}
	if l.Lock != nil {
		files.add(l.Lock)
	}
	if l.Network.Mode == vmm.NetworkTAP {
		l.TAP = files.add(l.Network.TAP)
		if l.Accelerator == vmm.KVM {
			// The kernel moves the packets then. It is an optional module.
			if l.VhostNet, err = give(os.OpenFile("/dev/vhost-net", os.O_RDWR, 0)); err != nil {
				l.VhostNet = 0
			}
		}
	}
	if l.From != nil {
		l.SavedMemory, l.State = files.add(l.From.Memory), files.add(l.From.State)
	}
	if l.Network.Mode == vmm.NetworkUser && !l.Network.NoEgress {
		if m.egress, err = s.egress(ctx); err != nil {
			m.log.Warn("guest has no way out to the network", "reason", err)
		}
		l.Egress = m.egress != nil
	}
	if m.console, err = logfile.New(filepath.Join(m.dir, vmm.ConsoleLog), logfile.Limit); err != nil {
		return nil, 0, err
	}
	if l.From != nil {
		if _, err = m.console.Write(l.From.Console); err != nil {
			return nil, 0, err
		}
	}
	if m.stderr, err = logfile.New(filepath.Join(m.dir, qemuLog), logfile.Limit); err != nil {
		return nil, 0, err
	}
	said, err := dir.Dial(ctx, consoleSocket)
	if err != nil {
		return nil, 0, err
	}
	if monitor, err = dir.Dial(ctx, monitorSocket); err != nil {
		return nil, 0, errors.Join(err, said.Close())
	}
	if err := s.execute(m, l, &files); err != nil {
		return nil, 0, errors.Join(err, said.Close(), monitor.Close())
	}
	m.relay(said, s.console)
	return monitor, l.State, nil
}

// egress makes the guest's way out, which exists only in isolation.
func (s *starter) egress(ctx context.Context) (*egress, error) {
	if !s.isolated {
		return nil, errors.New("QEMU cannot be isolated from the host's network")
	}
	return newEgress(ctx, s.driver.opts.Block, s.driver.opts.Log)
}

func (s *starter) execute(m *machine, l launch, files *inheritance) error {
	args, err := arguments(l)
	if err != nil {
		return err
	}
	cmd := exec.Command(s.binary, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if m.egress != nil {
		if err := m.egress.enter(cmd, files); err != nil {
			return err
		}
	} else if s.isolated {
		isolate(cmd.SysProcAttr)
	}
	cmd.Env, cmd.Dir, cmd.Stderr, cmd.ExtraFiles = childEnvironment(), "/", m.stderr, files.files
	if m.process, err = startProcess(cmd, l.Detached); err != nil {
		return err
	}
	if m.egress != nil {
		if err := m.egress.entered(); err != nil {
			m.log.Warn("could not close a namespace's file", "error", err)
		}
	}
	return nil
}

// relay keeps what the console says until QEMU has ended.
func (m *machine) relay(said net.Conn, also io.Writer) {
	relayed := make(chan struct{})
	m.relayed = relayed
	var to io.Writer = m.console
	if also != nil {
		to = io.MultiWriter(to, also)
	}
	go func() {
		defer close(relayed)
		// It is reset if QEMU ends before it takes the connection.
		if _, err := io.Copy(&lineEnds{to: to}, said); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			m.log.Warn("the console is not read any more", "error", err)
		}
		// It was only read from: nothing can be lost.
		_ = said.Close()
	}()
}

// meet waits for QEMU's monitor at the other end of conn. The socket takes connections before
// QEMU does.
func (m *machine) meet(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, monitorTimeout)
	defer cancel()
	mon, err := newMonitor(ctx, conn, m.onEvent)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.monitor = mon
	return nil
}

// explain ends a machine that could not be started and says why.
func (s *starter) explain(ctx context.Context, m *machine, err error) error {
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), m.Kill())
	}
	// A broken connection means that QEMU is about to end: it may not have yet.
	if !errors.Is(err, errMonitorLost) || m.process.wait(killTimeout) != nil {
		return errors.Join(err, m.Kill())
	}
	<-m.done
	if m.err != nil {
		err = m.err
	}
	return &refusedError{err}
}
