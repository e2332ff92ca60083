package machine

import (
	"context"
	"errors"
	"sync"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestlink"
)

// errGuestGone ends waits when the guest's machine does.
var errGuestGone = errors.New("the guest is gone")

// listeners is what the guest last said of its listeners.
type listeners struct {
	mu      sync.Mutex
	last    guestapi.Listeners
	changed chan struct{} // closed and replaced on every change
}

// followGuest hands on what the guest tells of its listeners, and whether the channel
// is up, until the channel ends.
func followGuest(channel *guestlink.Channel, forwards *forward.Manager) *listeners {
	l := &listeners{changed: make(chan struct{})}
	go func() {
		for report := range channel.Listeners(context.Background()) {
			forwards.SetListeners(report)
			l.set(report)
		}
	}()
	go func() {
		for state := range channel.States(context.Background()) {
			forwards.SetTunnel(state.Err)
		}
	}()
	return l
}

// set takes in a report.
func (l *listeners) set(report guestapi.Listeners) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = report
	close(l.changed)
	l.changed = make(chan struct{})
}

// wait returns once something listens on the guest's port of req, ctx ends, or gone is
// closed.
func (l *listeners) wait(ctx context.Context, gone <-chan struct{}, req forward.Request) error {
	for {
		l.mu.Lock()
		ports := l.last.TCP
		if req.Protocol == forward.UDP {
			ports = l.last.UDP
		}
		_, ok := ports[uint16(req.GuestPort)]
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
