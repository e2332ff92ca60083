package control

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"syscall"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/machine"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/vmm"
)

// problem is an error on its way from one process to another.
type problem struct {
	Message string `json:"error"`
	// Kinds are the names of the errors that it is to errors.Is.
	Kinds []string `json:"kinds,omitempty"`

	// What errors.As finds in it.

	Port       *forward.PortError       `json:"port,omitempty"`
	PortInUse  *forward.PortInUseError  `json:"port_in_use,omitempty"`
	NotRunning *machine.NotRunningError `json:"not_running,omitempty"`
	Start      *startProblem            `json:"start,omitempty"`
	Refused    *guestlink.RefusedError  `json:"refused,omitempty"`
}

type startProblem struct {
	Program  string
	NotFound bool
	Reason   string
}

// kinds are the errors that survive the way, with their names in the API.
func kinds() map[string]error {
	return map[string]error{
		"invalid_port":      forward.ErrInvalidPort,
		"invalid_port_spec": forward.ErrInvalidSpec,
		"port_in_use":       forward.ErrPortInUse,
		"transport":         forward.ErrTransport,
		"not_running":       machine.ErrNotRunning,
		"running":           machine.ErrRunning,
		"not_written":       machine.ErrNotWritten,
		"deleted":           machine.ErrDeleted,
		"timeout":           machine.ErrTimeout,
		"invalid_option":    machine.ErrInvalidOption,
		"image_in_use":      machine.ErrImageInUse,
		"cannot_resume":     machine.ErrCannotResume,
		"not_found":         store.ErrNotFound,
		"exists":            store.ErrExists,
		"no_snapshot":       store.ErrSnapshotNotFound,
		"snapshot_exists":   store.ErrSnapshotExists,
		"damaged":           store.ErrDamaged,
		"in_use":            store.ErrInUse,
		"invalid_name":      store.ErrInvalidName,
		"image_not_found":   image.ErrNotFound,
		"accelerator":       vmm.ErrAccelerator,
		"file_not_found":    fs.ErrNotExist,
		"file_exists":       fs.ErrExist,
		"permission":        fs.ErrPermission,
		"is_directory":      syscall.EISDIR,
		"not_directory":     syscall.ENOTDIR,
		"no_space":          syscall.ENOSPC,
		"cancelled":         context.Canceled,
		"deadline":          context.DeadlineExceeded,
	}
}

// newProblem packs an error.
func newProblem(err error) *problem {
	p := &problem{Message: err.Error()}
	for name, kind := range kinds() {
		if errors.Is(err, kind) {
			p.Kinds = append(p.Kinds, name)
		}
	}
	errors.As(err, &p.Port)
	errors.As(err, &p.PortInUse)
	errors.As(err, &p.NotRunning)
	errors.As(err, &p.Refused)
	if start := (*machine.StartError)(nil); errors.As(err, &start) {
		p.Start = &startProblem{Program: start.Program, NotFound: start.NotFound, Reason: start.Err.Error()}
	}
	return p
}

// err unpacks the error.
func (p *problem) err() error {
	e := &remoteError{message: p.Message}
	known := kinds()
	for _, name := range p.Kinds {
		if kind, ok := known[name]; ok {
			e.causes = append(e.causes, kind)
		}
	}
	if p.Port != nil {
		e.causes = append(e.causes, p.Port)
	}
	if p.PortInUse != nil {
		e.causes = append(e.causes, p.PortInUse)
	}
	if p.NotRunning != nil {
		e.causes = append(e.causes, p.NotRunning)
	}
	if p.Refused != nil {
		e.causes = append(e.causes, p.Refused)
	}
	if p.Start != nil {
		e.causes = append(e.causes, &machine.StartError{
			Program: p.Start.Program, NotFound: p.Start.NotFound, Err: errors.New(p.Start.Reason),
		})
	}
	return e
}

// parseProblem reads the error in an answer's body.
func parseProblem(body []byte) error {
	var p problem
	if err := json.Unmarshal(body, &p); err != nil || p.Message == "" {
		return errors.New("the VM's owner failed and does not say why")
	}
	return p.err()
}

// remoteError is an error of another process.
type remoteError struct {
	message string
	causes  []error
}

func (e *remoteError) Error() string   { return e.message }
func (e *remoteError) Unwrap() []error { return e.causes }
