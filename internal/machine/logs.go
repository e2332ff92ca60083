package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/vmm"
)

// LogSource names one of a VM's logs.
type LogSource string

// The logs.
const (
	LogConsole LogSource = "console" // what the guest's kernel says and what detached commands write
	LogOwner   LogSource = "owner"   // what the VM's background owner says
)

// OwnerLog is the file in a VM's directory that its background owner writes its log to. An older
// part is in OwnerLog + ".1".
const OwnerLog = "owner.log"

// LogOptions say which log is wanted and how much of it.
type LogOptions struct {
	Source LogSource // default: LogConsole
	Lines  int       // only the last lines; 0: all that is kept
	Follow bool      // go on with what is added
}

// Logs returns a log of the VM of that name, whether it runs or not. A VM that was never started
// has an empty one. What the reader returns is what the guest wrote, byte for byte: before it
// gets to a terminal, what terminals act on must be taken out.
//
// With Follow the reader goes on, over restarts and changes of the VM's name, until ctx ends,
// which is its error then, or the VM is deleted. The caller owes a Close, which may come at any
// time, from any goroutine.
//
// It fails with store.ErrNotFound, or ErrInvalidOption.
func (h *Host) Logs(ctx context.Context, name string, opts LogOptions) (io.ReadCloser, error) {
	if err := store.CheckName(name); err != nil {
		return nil, err
	}
	var file string
	switch opts.Source {
	case "", LogConsole:
		file = vmm.ConsoleLog
	case LogOwner:
		file = OwnerLog
	default:
		return nil, fmt.Errorf("%w: log must be %s or %s, not %q", ErrInvalidOption, LogConsole, LogOwner, opts.Source)
	}
	if opts.Lines < 0 {
		return nil, fmt.Errorf("%w: lines must be at least 0, not %d", ErrInvalidOption, opts.Lines)
	}
	dir, err := os.OpenFile(h.store.Dir(name), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %q", store.ErrNotFound, name)
	} else if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	reader := &logReader{ctx: ctx, dir: dir, name: file, follow: opts.Follow, closed: make(chan struct{})}
	if err := reader.begin(opts.Lines); err != nil {
		return nil, errors.Join(fmt.Errorf("read log: %w", err), reader.Close())
	}
	return reader, nil
}
