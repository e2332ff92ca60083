package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// What QEMU calls migration goes to a file here, and comes from one. The memory is not in it:
// it is in a file of its own, which those who go on from there map.

// stateName is what QEMU calls the file that the state is written to.
const stateName = "state"

// capability is a setting of QEMU's migration.
type capability struct {
	Name  string `json:"capability"`
	State bool   `json:"state"`
}

// memoryApart has QEMU leave shared memory where it is.
func memoryApart() capability { return capability{"x-ignore-shared", true} }

// capabilities are what migrate-set-capabilities takes.
func capabilities(all ...capability) any {
	return map[string][]capability{"capabilities": all}
}

// Save implements vmm.Machine.
func (m *machine) Save(ctx context.Context, path string) (err error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("save machine: %w", err)
	}
	defer func() {
		err = errors.Join(err, file.Close())
		if err != nil {
			err = fmt.Errorf("save machine: %w", errors.Join(err, os.Remove(path)))
		}
	}()
	events := capability{"events", true}
	if err := m.monitor.execute(ctx, "migrate-set-capabilities", capabilities(memoryApart(), events), nil); err != nil {
		return err
	}
	if err := m.monitor.giveFile(ctx, stateName, file); err != nil {
		return err
	}
	if err := m.monitor.execute(ctx, "migrate", map[string]string{"uri": "fd:" + stateName}, nil); err != nil {
		return err
	}
	for {
		select {
		case status := <-m.saving:
			switch status {
			case "completed":
				return nil
			case "failed", "cancelled":
				return fmt.Errorf("QEMU says that it %s", status)
			}
		case <-m.done:
			return errors.Join(errEnded, m.err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// migrated is told what has become of a migration. The caller holds m.mu.
func (m *machine) migrated(data json.RawMessage) {
	var event struct {
		Status string `json:"status"`
	}
	if err := json.Unmarshal(data, &event); err != nil {
		m.log.Warn("QEMU does not tell how saving went", "error", err)
		return
	}
	select {
	case m.saving <- event.Status:
	default: // nobody saves, or QEMU tells of more states than there are
	}
}

// restore has a machine that waits for it go on from the state that QEMU has open.
func (m *machine) restore(ctx context.Context, state int) error {
	ctx, cancel := context.WithTimeout(ctx, monitorTimeout)
	defer cancel()
	if err := m.monitor.execute(ctx, "migrate-set-capabilities", capabilities(memoryApart()), nil); err != nil {
		return err
	}
	uri := fmt.Sprintf("fd:%d", state)
	if err := m.monitor.execute(ctx, "migrate-incoming", map[string]string{"uri": uri}, nil); err != nil {
		return err
	}
	select {
	case <-m.resumed:
		return nil
	case <-m.monitor.done: // QEMU ends when it cannot make sense of the state
		return m.monitor.cause()
	case <-ctx.Done():
		return fmt.Errorf("QEMU does not restore the saved state: %w", ctx.Err())
	}
}
