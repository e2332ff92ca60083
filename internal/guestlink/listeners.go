package guestlink

import (
	"context"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// Listeners tells of the guest's listeners, now and whenever they change. The
// channel holds the newest report only: whoever is slow misses what is out of date.
// It is closed when ctx or the link ends.
func (l *Link) Listeners(ctx context.Context) <-chan guestapi.Listeners {
	l.watch.Do(func() {
		// If this fails the link ends.
		_, _, _ = l.conn.SendRequest(guestapi.RequestWatchListeners, false, nil)
	})
	return l.listeners.subscribe(ctx)
}

// report takes a report in. One that makes no sense is dropped.
func (l *Link) report(payload []byte) {
	var now guestapi.Listeners
	if err := guestapi.Decode(payload, &now); err != nil {
		l.log.Warn("the guest's report of its listeners cannot be read", "error", err)
		return
	}
	l.listeners.set(now)
}
