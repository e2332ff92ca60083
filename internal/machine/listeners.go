package machine

import (
	"context"
	"errors"
	"sync"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestlink"
)

// errGuestGone ends waits when the guest channel closes.
var errGuestGone = errors.New("the guest is gone")

// listeners is what the guest last said of its TCP listeners.
type listeners struct {
	mu      sync.Mutex
	tcp     map[uint16]guestapi.Scope
	changed chan struct{} // closed and replaced on every change
}

// watchListeners has the guest report its listeners, and hands the reports on to
// the forwards until the link ends.
func watchListeners(ctx context.Context, link *guestlink.Link, forwards *forward.Manager) (*listeners, error) {
	// The reports end with the link, not with the start that asked for them.
	reports, err := link.Listeners(context.WithoutCancel(ctx))
	if err != nil {
		return nil, err
	}
	l := &listeners{changed: make(chan struct{})}
	go func() {
		for report := range reports {
			forwards.SetListeners(report.TCP)
			l.set(report.TCP)
		}
	}()
	return l, nil
}

// set takes in a report.
func (l *listeners) set(tcp map[uint16]guestapi.Scope) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tcp = tcp
	close(l.changed)
	l.changed = make(chan struct{})
}

// wait returns once something listens on port, ctx ends, or gone is closed.
func (l *listeners) wait(ctx context.Context, gone <-chan struct{}, port uint16) error {
	for {
		l.mu.Lock()
		_, ok := l.tcp[port]
		changed := l.changed
		l.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-gone:
			return errGuestGone
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
