package machine

import (
	"context"
	"errors"
	"fmt"
)

var (
	// ErrNotRunning is wrapped by errors about a verb that needs a running VM.
	ErrNotRunning = errors.New("VM is not running")
	// ErrRunning is wrapped by errors about a verb that a running VM cannot have.
	ErrRunning = errors.New("VM is running")
	// ErrNotWritten is wrapped by errors about a VM's disk that lacks what is still in its memory.
	ErrNotWritten = errors.New("part of what the guest wrote is in its memory only")
	// ErrDeleted is wrapped by errors about a VM that was deleted.
	ErrDeleted = errors.New("VM was deleted")
	// ErrTimeout is wrapped by errors about a wait that took too long.
	ErrTimeout = errors.New("timed out")
	// ErrImageInUse is wrapped by errors about an image that VMs are made on.
	ErrImageInUse = errors.New("image is in use")
	// ErrImageShared is wrapped by errors about an image that is not this data directory's.
	ErrImageShared = errors.New("image belongs to another data directory")
	// ErrInvalidOption is wrapped by errors about an option out of its range.
	ErrInvalidOption = errors.New("invalid option")
)

// NotRunningError says what could not be done because the VM does not run.
// It matches ErrNotRunning.
type NotRunningError struct {
	Op     string // what was to be done: "expose port"
	Status Status
}

func (e *NotRunningError) Error() string {
	status := e.Status
	if status == StatusCreated {
		status = StatusStopped // to someone who wants it to run, the same
	}
	return fmt.Sprintf("cannot %s: VM is %s", e.Op, status)
}

// Is makes every NotRunningError match ErrNotRunning.
func (e *NotRunningError) Is(target error) bool { return target == ErrNotRunning }

// timedOut adds ErrTimeout to an error that a deadline caused.
func timedOut(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", ErrTimeout, err)
	}
	return err
}
