package machine

import (
	"time"

	"github.com/smolvm/smolvm/internal/store"
)

// MainInfo is what is known of a VM's main process.
type MainInfo struct {
	Command []string `json:"command"`
	Running bool     `json:"running"`
	PID     int      `json:"pid,omitempty"` // in the guest
	// Started and Finished are zero where it was not started, or has not ended.
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	// ExitCode is nil unless it has ended by itself; 128 plus the signal's number if a signal ended it.
	ExitCode *int   `json:"exit_code,omitempty"`
	Signal   string `json:"signal,omitempty"` // that ended it, without "SIG"
	// Restarts is how often its owner has started it again, or its VM, since that was last started.
	Restarts int `json:"restarts"`
}

// mainOf is what a record tells of the main process; nil: there is none.
func mainOf(rec store.Record, runs bool) *MainInfo {
	if len(rec.Main) == 0 {
		return nil
	}
	info := &MainInfo{Command: rec.Main, Restarts: rec.Restarts}
	m := rec.MainRun
	if m == nil {
		return info
	}
	info.Started, info.Finished, info.Signal = m.Started, m.Ended, m.Signal
	if m.Ended.IsZero() {
		info.Running = runs
		if runs {
			info.PID = m.PID
		}
		return info
	}
	info.ExitCode = &m.ExitCode
	return info
}
