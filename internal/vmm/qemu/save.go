package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/vmm"
)

// What QEMU calls migration goes to a pipe here, and comes from a file.

const (
	// streamName is what QEMU calls the pipe that it writes the machine to.
	streamName = "stream"
	// saveDowntime is how long a guest may stand still while the last of its memory is written.
	saveDowntime = 20 * time.Millisecond
	// saveAlive is how long it runs on while its memory is written. One that changes memory faster
	// than that can be written is stopped then.
	saveAlive = 5 * time.Second
)

// The states of a migration that matter here.
const (
	migrationPaused    = "pre-switchover" // the guest stands still, and its disk is written out
	migrationDone      = "completed"
	migrationFailed    = "failed"
	migrationCancelled = "cancelled"
	migrationAbandoned = "cancelling" // it was cancelled, and has not ended yet
)

// nudgeEvery is how often QEMU is told to go on with the end of a migration.
const nudgeEvery = 100 * time.Millisecond

// Save implements vmm.Machine.
func (m *machine) Save(ctx context.Context, to vmm.Destination) (err error) {
	var made []*os.File
	defer func() {
		for _, f := range made {
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			for _, f := range made {
				err = errors.Join(err, os.Remove(f.Name()))
			}
			err = fmt.Errorf("save machine: %w", err)
		}
	}()
	for _, path := range []string{to.Memory, to.State} {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		made = append(made, f)
	}
	return m.save(ctx, made[0], made[1], to.Stopped)
}

// save writes the machine to open files.
func (m *machine) save(ctx context.Context, memory, state *os.File, stopped func(context.Context) error) error {
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close() //nolint:errcheck // only read from
	if err := enlarge(out); err != nil {
		return err
	}
	states := m.migrations()
	err = m.standStill(ctx)
	if err == nil {
		err = m.beginSave(ctx, in)
	}
	if err = errors.Join(err, in.Close()); err != nil {
		return err
	}
	split := make(chan error, 1)
	go func() {
		file := newMemoryFile(memory)
		size, err := splitStream(out, memoryID, file, state)
		if err == nil {
			err = file.finish(size)
		} else {
			_ = out.Close() // QEMU need not write on
		}
		split <- err
	}()
	err = m.followSave(ctx, states, stopped)
	if err != nil {
		// It ends in any case; how says nothing more.
		_ = m.monitor.execute(context.WithoutCancel(ctx), "migrate_cancel", nil, nil)
		_ = out.Close()
		err = errors.Join(err, <-split)
		if !errors.Is(err, errSaveOver) {
			m.awaitSaved(states)
		}
		return err
	}
	return <-split
}

// enlarge makes a pipe hold more, for fewer switches between QEMU and this program. A smaller pipe
// does, too.
func enlarge(pipe *os.File) error {
	conn, err := pipe.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, runSize) })
}

// standStill pauses an emulated guest. QEMU does not notice all that such a guest writes while it
// is saved: once it has looked which pages were written, it looks out for more writes only if one
// of them was not to be saved anyway. Of a guest that wrote all the time some pages were saved as
// what they had been before, and what went on from there crashed.
func (m *machine) standStill(ctx context.Context) error {
	var kvm struct {
		Enabled bool `json:"enabled"`
	}
	if err := m.monitor.execute(ctx, "query-kvm", nil, &kvm); err != nil || kvm.Enabled {
		return err
	}
	return m.Pause(ctx)
}

// beginSave has QEMU write the machine to a pipe.
func (m *machine) beginSave(ctx context.Context, pipe *os.File) error {
	for _, command := range []struct {
		name      string
		arguments any
	}{
		{"migrate-set-capabilities", capabilities(capability{"events", true}, capability{"pause-before-switchover", true})},
		{"migrate-set-parameters", map[string]int64{
			"max-bandwidth": math.MaxInt64 / 2, "downtime-limit": saveDowntime.Milliseconds(),
		}},
	} {
		if err := m.monitor.execute(ctx, command.name, command.arguments, nil); err != nil {
			return err
		}
	}
	if err := m.monitor.giveFile(ctx, streamName, pipe); err != nil {
		return err
	}
	return m.monitor.execute(ctx, "migrate", map[string]string{"uri": "fd:" + streamName}, nil)
}

// errSaveOver says that QEMU has ended a migration.
var errSaveOver = errors.New("the machine is not saved")

// awaitSaved waits until QEMU has ended a migration that was cancelled. Before that it refuses to
// resume a guest that it has stopped for the last of its memory.
//
// If it was cancelled in the moment in which QEMU was about to wait for us to say that it may go on, it
// waits all the same, and for ever if we do not.
func (m *machine) awaitSaved(states <-chan string) {
	tooLong := time.NewTimer(monitorTimeout)
	defer tooLong.Stop()
	nudge := time.NewTicker(nudgeEvery)
	defer nudge.Stop()
	for {
		select {
		case <-nudge.C:
			// It is refused once the migration has ended, of which the state is on its way.
			goOn := map[string]string{"state": migrationAbandoned}
			_ = m.monitor.execute(context.Background(), "migrate-continue", goOn, nil)
		case status := <-states:
			if status == migrationDone || status == migrationFailed || status == migrationCancelled {
				return
			}
		case <-tooLong.C:
			m.log.Warn("QEMU does not end what was given up", "waited", monitorTimeout)
			return
		case <-m.done:
			return
		}
	}
}

// followSave sees a machine through being saved.
func (m *machine) followSave(ctx context.Context, states <-chan string, stopped func(context.Context) error) error {
	tooLong := time.NewTimer(saveAlive)
	defer tooLong.Stop()
	for {
		select {
		case <-tooLong.C:
			if err := m.Pause(ctx); err != nil {
				return err
			}
		case status := <-states:
			switch status {
			case migrationPaused:
				if stopped != nil {
					if err := stopped(ctx); err != nil {
						return err
					}
				}
				resume := map[string]string{"state": migrationPaused}
				if err := m.monitor.execute(ctx, "migrate-continue", resume, nil); err != nil {
					return err
				}
			case migrationDone:
				return nil
			case migrationFailed, migrationCancelled:
				return fmt.Errorf("QEMU says that it %s: %w", status, errSaveOver)
			}
		case <-m.done:
			return errors.Join(errEnded, m.err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// capability is a setting of QEMU's migration.
type capability struct {
	Name  string `json:"capability"`
	State bool   `json:"state"`
}

// capabilities are what migrate-set-capabilities takes.
func capabilities(all ...capability) any {
	return map[string][]capability{"capabilities": all}
}

// migrations returns the states of the next migration, as they come.
func (m *machine) migrations() <-chan string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.migration = make(chan string, 16)
	return m.migration
}

// migrated is told what has become of a migration. The caller holds m.mu.
func (m *machine) migrated(data json.RawMessage) {
	var event struct {
		Status string `json:"status"`
	}
	if err := json.Unmarshal(data, &event); err != nil {
		m.log.Warn("QEMU does not tell how saving goes", "error", err)
		return
	}
	select {
	case m.migration <- event.Status:
	default: // nobody saves or restores, or QEMU tells of more states than there are
	}
}

// restore has a machine that waits for it go on from the state that QEMU has open.
func (m *machine) restore(ctx context.Context, state int, restored func() error) error {
	ctx, cancel := context.WithTimeout(ctx, monitorTimeout)
	defer cancel()
	states := m.migrations()
	if err := m.monitor.execute(ctx, "migrate-set-capabilities", capabilities(capability{"events", true}), nil); err != nil {
		return err
	}
	uri := fmt.Sprintf("fd:%d", state)
	if err := m.monitor.execute(ctx, "migrate-incoming", map[string]string{"uri": uri}, nil); err != nil {
		return err
	}
	for status := ""; status != migrationDone; {
		select {
		case status = <-states:
			if status == migrationFailed {
				return errors.New("QEMU cannot make sense of the saved state")
			}
		case <-m.monitor.done: // it ends then
			return m.monitor.cause()
		case <-ctx.Done():
			return fmt.Errorf("QEMU does not restore the saved state: %w", ctx.Err())
		}
	}
	if restored != nil {
		if err := restored(); err != nil {
			return err
		}
	}
	return m.Resume(ctx)
}
