package guestlink

import (
	"context"
	"encoding/json"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// Listeners tells of the guest's listeners, now and whenever they change. The
// channel holds the newest report only: whoever is slow misses what is out of date.
// It is closed when ctx or the link ends.
func (l *Link) Listeners(ctx context.Context) (<-chan guestapi.Listeners, error) {
	l.mu.Lock()
	first := !l.watching
	l.watching = true
	l.mu.Unlock()
	if first {
		if _, err := l.request(ctx, "watch listeners", guestapi.RequestWatchListeners, nil); err != nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.watching = false
			return nil, err
		}
	}
	return l.listeners.subscribe(ctx), nil
}

// report takes a report in. One that makes no sense is dropped.
func (l *Link) report(payload []byte) {
	var now guestapi.Listeners
	if err := json.Unmarshal(payload, &now); err != nil {
		l.log.Warn("the guest's report of its listeners cannot be read", "error", err)
		return
	}
	l.listeners.set(now)
}
