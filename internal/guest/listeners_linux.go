package guest

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestapi/wire"
)

// How often a watch looks: soon after a command was started, which may well begin to listen,
// and then less and less often. Not at once: the command needs the processor to come so far, and
// most have ended by then.
const (
	watchFast = 20 * time.Millisecond
	watchSlow = 250 * time.Millisecond
)

// watch reports the guest's listeners to the host, now and whenever they change,
// until the connection ends.
func (s *Server) watch(ctx context.Context, session *wire.Session) {
	defer s.survive()
	// Before that the kernel finds no module that it needs to tell, and is not asked again.
	_ = s.system.Ready(ctx)
	var last *guestapi.Listeners
	interval, due := watchFast, time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	after := func(d time.Duration) {
		due = time.Now().Add(d)
		timer.Reset(d)
	}
	for {
		started := s.nudge.wait()
		select {
		case <-ctx.Done():
			return
		case <-started:
			interval = watchFast
			if time.Until(due) > interval {
				after(interval)
			}
			continue
		case <-timer.C:
		}
		now, err := s.sockets.report()
		if err != nil {
			s.log.Warn("could not list the listeners", "error", err)
		} else if last == nil || !maps.Equal(now.TCP, last.TCP) || !maps.Equal(now.UDP, last.UDP) {
			if _, _, err := session.SendRequest(guestapi.RequestListeners, false, guestapi.Encode(&now)); err != nil {
				return
			}
			last = &now
		}
		after(interval)
		interval = min(interval*3/2, watchSlow)
	}
}

// nudge wakes those who wait for something to happen.
type nudge struct {
	mu sync.Mutex
	ch chan struct{}
}

func newNudge() *nudge {
	return &nudge{ch: make(chan struct{})}
}

// wait returns a channel that is closed by the next give.
func (n *nudge) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ch
}

func (n *nudge) give() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.ch)
	n.ch = make(chan struct{})
}
