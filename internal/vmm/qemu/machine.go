package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The files in vmm.Config.Dir besides the console's log.
const (
	monitorSocket = "qmp.sock"
	channelSocket = "guest.sock"
	qemuLog       = "qemu.log"
)

// panicMark is how the guest's kernel begins its last words.
const panicMark = "Kernel panic - not syncing: "

// How long each step of Stop may take: 12 s in all.
const (
	powerOffTimeout = 8 * time.Second
	quitTimeout     = 2 * time.Second
	killTimeout     = 2 * time.Second
)

// machine is a running QEMU. It implements vmm.Machine.
type machine struct {
	log     *slog.Logger
	dir     string
	process *process
	console *boundedLog
	stderr  *boundedLog
	relayed <-chan struct{} // closed when all that the console said is in its log
	egress  *egress         // nil: none
	done    chan struct{}
	err     error // valid once done is closed

	mu       sync.Mutex
	monitor  *monitor // nil until it is connected
	paused   bool
	wanted   bool   // somebody asked for the end
	shutdown string // QEMU's word for why the guest ended
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
	dir, err := openDirectory(m.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close() //nolint:errcheck // only looked things up in
	return dir.dial(ctx, socket)
}

// PID implements vmm.Machine.
func (m *machine) PID() int { return m.process.pid() }

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

// Pause implements vmm.Machine.
func (m *machine) Pause(ctx context.Context) error { return m.setPaused(ctx, true) }

// Resume implements vmm.Machine.
func (m *machine) Resume(ctx context.Context) error { return m.setPaused(ctx, false) }

func (m *machine) setPaused(ctx context.Context, paused bool) error {
	command := "cont"
	if paused {
		command = "stop"
	}
	if err := m.monitor.execute(ctx, command, nil, nil); err != nil {
		if dead := m.alive(); dead != nil {
			err = dead
		}
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = paused
	return nil
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
	m.mu.Lock()
	paused := m.paused
	m.mu.Unlock()
	if paused {
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
	if name != "SHUTDOWN" {
		return
	}
	var shutdown struct {
		Reason string `json:"reason"`
	}
	if err := json.Unmarshal(data, &shutdown); err != nil {
		m.log.Warn("QEMU tells no reason for its end", "error", err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shutdown = shutdown.Reason
}

// supervise waits for QEMU's end, releases what belongs to it and says why it
// ended.
func (m *machine) supervise() {
	<-m.process.done
	<-m.relayed // ends with QEMU, which alone could write there
	m.mu.Lock()
	mon := m.monitor
	m.mu.Unlock()
	if mon != nil {
		mon.drain(time.Second)
		mon.close()
	}
	if m.egress != nil {
		if err := m.egress.close(); err != nil {
			m.log.Warn("could not close the guest's way out", "error", err)
		}
	}
	if err := m.removeSockets(); err != nil {
		m.log.Warn("could not remove a machine's sockets", "error", err)
	}
	m.console.Close()
	m.stderr.Close()
	m.err = m.cause()
	close(m.done)
}

func (m *machine) removeSockets() error {
	dir, err := openDirectory(m.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil // gone with its sockets
	} else if err != nil {
		return err
	}
	return errors.Join(dir.remove(monitorSocket), dir.remove(channelSocket), dir.Close())
}

// cause tells why QEMU ended.
func (m *machine) cause() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	panicked, isPanic := m.console.lineAfter(panicMark)
	switch {
	case m.process.err != nil && m.wanted:
		return nil
	case m.process.err != nil:
		return fmt.Errorf("QEMU ended: %s%s", m.describeExit(), m.logs())
	case m.wanted || m.shutdown == "guest-shutdown":
		return nil
	case isPanic:
		return fmt.Errorf("guest's kernel panicked: %s", panicked)
	case m.shutdown == "guest-reset" || m.shutdown == "":
		// A guest that restarts itself has ended in order: it is not started again.
		return nil
	}
	return fmt.Errorf("QEMU ended: %s%s", m.shutdown, m.logs())
}

func (m *machine) describeExit() string {
	if status, ok := m.process.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return fmt.Sprintf("killed by signal %d (%s)", status.Signal(), status.Signal())
	}
	return m.process.err.Error()
}

// logs returns the ends of the logs, for an error's text.
func (m *machine) logs() string {
	var b strings.Builder
	if s := m.stderr.lastLines(5); s != "" {
		b.WriteString("; QEMU's last words: " + s)
	}
	if s := m.console.lastLines(8); s != "" {
		b.WriteString("; the console's: " + s)
	}
	return b.String()
}
