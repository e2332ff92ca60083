package qemu

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/smolvm/smolvm/internal/logfile"
	"github.com/smolvm/smolvm/internal/vmm"
)

// adoptTimeout bounds the time that a QEMU takes to answer its new owner.
const adoptTimeout = 10 * time.Second

// Adopt takes over a machine whose owner died. Its logs go on. What its console said
// meanwhile is lost, and so is what QEMU itself says from now on: Err knows less.
// If it has ended, the error wraps vmm.ErrGone. If it does not answer within 10 s, the
// error names its process, which lives on: KillOrphan ends it.
func (d *Driver) Adopt(ctx context.Context, a vmm.Adoption) (vmm.Machine, error) {
	m, err := d.adopt(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("take QEMU over: %w", err)
	}
	return m, nil
}

func (d *Driver) adopt(ctx context.Context, a vmm.Adoption) (*machine, error) {
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	o, err := findOrphan(ctx, a.Lock)
	if err != nil {
		return nil, err
	}
	m := newMachine(d.opts.Log, a.Dir)
	if err := m.takeOver(ctx); err != nil {
		if o.handle.ended() {
			err = fmt.Errorf("%w: %w", vmm.ErrGone, err)
		} else {
			err = fmt.Errorf("process %d does not answer: %w", o.id, err)
		}
		return nil, errors.Join(err, o.handle.Close())
	}
	m.process = adoptProcess(o.id, o.handle)
	go m.supervise()
	return m, nil
}

// takeOver connects to a QEMU that runs. If it fails, nothing is left of it.
func (m *machine) takeOver(ctx context.Context) (err error) {
	conn, err := m.dial(ctx, monitorSocket)
	if err != nil {
		return err
	}
	if err := m.meet(ctx, conn); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			m.monitor.close()
		}
	}()
	var status struct {
		Running bool `json:"running"`
	}
	if err := m.monitor.execute(ctx, "query-status", nil, &status); err != nil {
		return err
	}
	m.mu.Lock()
	m.paused = !status.Running
	m.mu.Unlock()
	if !status.Running {
		// The owner may have died while it saved the machine.
		if err := m.monitor.execute(ctx, "migrate_cancel", nil, nil); err != nil {
			return err
		}
	}
	if m.console, err = logfile.Continue(filepath.Join(m.dir, vmm.ConsoleLog), logfile.Limit); err != nil {
		return err
	}
	if m.stderr, err = logfile.Continue(filepath.Join(m.dir, qemuLog), logfile.Limit); err != nil {
		m.console.Close()
		return err
	}
	said, err := m.dial(ctx, consoleSocket)
	if err != nil {
		m.console.Close()
		m.stderr.Close()
		return err
	}
	m.relay(said, nil)
	return nil
}
