package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/smolvm/smolvm/internal/logfile"
	"github.com/smolvm/smolvm/internal/sockdir"
)

// The files in vmm.Config.Dir besides the console's log.
const (
	monitorSocket = "qmp.sock"
	channelSocket = "guest.sock"
	consoleSocket = "console.sock"
	qemuLog       = "qemu.log"
)

// How long each step of Stop may take.
const (
	powerOffTimeout = 8 * time.Second
	quitTimeout     = 2 * time.Second
	killTimeout     = time.Minute // a host that is busy with twenty others takes seconds
)

// machine is a running QEMU, started or adopted. It implements vmm.Machine.
type machine struct {
	log     *slog.Logger
	dir     string
	process *process
	console *logfile.Log
	stderr  *logfile.Log
	relayed <-chan struct{} // closed when all that the console said is in its log
	egress  *egress         // nil: none, or it takes care of itself
	done    chan struct{}
	err     error // valid once done is closed

	mu       sync.Mutex
	monitor  *monitor // nil until it is connected
	paused   bool
	wanted   bool   // somebody asked for the end
	shutdown string // QEMU's word for why the guest ended

	migration chan string // the states of what QEMU calls so; nil: nobody wants to know
}

func newMachine(log *slog.Logger, dir string) *machine {
	return &machine{log: log, dir: dir, done: make(chan struct{})}
}

// Channel implements vmm.Machine.
func (m *machine) Channel(ctx context.Context) (net.Conn, error) {
	if err := m.alive(); err != nil {
		return nil, fmt.Errorf("connect to guest: %w", err)
	}
	conn, err := m.dial(ctx, channelSocket)
	if err != nil {
		if dead := m.alive(); dead != nil {
			err = dead
		}
		return nil, fmt.Errorf("connect to guest: %w", err)
	}
	return conn, nil
}

func (m *machine) dial(ctx context.Context, socket string) (net.Conn, error) {
	dir, err := sockdir.Open(m.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close() //nolint:errcheck // only looked things up in
	return dir.Dial(ctx, socket)
}

// PID implements vmm.Machine.
func (m *machine) PID() int { return m.process.id }

// Done implements vmm.Machine.
func (m *machine) Done() <-chan struct{} { return m.done }

// Err implements vmm.Machine.
func (m *machine) Err() error {
	select {
	case <-m.done:
		return m.err
	default:
		return nil
	}
}

// Paused implements vmm.Machine.
func (m *machine) Paused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.paused
}

// Pause implements vmm.Machine.
func (m *machine) Pause(ctx context.Context) error { return m.command(ctx, "stop") }

// Resume implements vmm.Machine.
func (m *machine) Resume(ctx context.Context) error { return m.command(ctx, "cont") }

// command has QEMU do what an event that comes before its answer tells of.
func (m *machine) command(ctx context.Context, command string) error {
	err := m.monitor.execute(ctx, command, nil, nil)
	if err != nil {
		if dead := m.alive(); dead != nil {
			err = dead
		}
	}
	return err
}

// Stop implements vmm.Machine.
func (m *machine) Stop(ctx context.Context, powerOff func(context.Context) error) error {
	m.want()
	if powerOff != nil {
		err := m.powerOff(ctx, powerOff)
		if err == nil {
			return nil
		}
		m.log.Warn("guest did not power off: ending it", "error", err)
	}
	// A cancelled context must not keep QEMU from writing out what it has.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
	defer cancel()
	err := m.monitor.execute(ctx, "quit", nil, nil)
	if err == nil || errors.Is(err, errMonitorLost) {
		if err = m.wait(ctx); err == nil {
			return nil
		}
	}
	m.log.Warn("QEMU did not quit: killing it", "error", err)
	return m.Kill()
}

// powerOff asks the guest to power off and waits until QEMU has ended.
func (m *machine) powerOff(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, powerOffTimeout)
	defer cancel()
	go func() {
		select {
		case <-m.done:
			cancel() // what asks need not wait for an answer any more
		case <-ctx.Done():
		}
	}()
	if m.Paused() {
		if err := m.Resume(ctx); err != nil {
			return fmt.Errorf("resume guest: %w", err)
		}
	}
	if err := ask(ctx); err != nil {
		select {
		case <-m.done:
			return nil
		default:
			return err
		}
	}
	return m.wait(ctx)
}

// Kill implements vmm.Machine.
func (m *machine) Kill() error {
	m.want()
	if err := m.process.kill(); err != nil {
		return err
	}
	<-m.done
	return nil
}

func (m *machine) want() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wanted = true
}

func (m *machine) wait(ctx context.Context) error {
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
	}
	// Both may have come at once.
	select {
	case <-m.done:
		return nil
	default:
		return ctx.Err()
	}
}

// alive returns why the machine is of no use any more.
func (m *machine) alive() error {
	select {
	case <-m.process.done:
	default:
		return nil
	}
	<-m.done
	if m.err != nil {
		return m.err
	}
	return errEnded
}

// onEvent is called by the monitor.
func (m *machine) onEvent(name string, data json.RawMessage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch name {
	case "STOP": // also when the host's disk is full
		m.paused = true
	case "RESUME":
		m.paused = false
	case "MIGRATION":
		m.migrated(data)
	case "SHUTDOWN":
		var shutdown struct {
			Reason string `json:"reason"`
		}
		if err := json.Unmarshal(data, &shutdown); err != nil {
			m.log.Warn("QEMU tells no reason for its end", "error", err)
			return
		}
		m.shutdown = shutdown.Reason
	}
}
