package guestlink

import (
	"context"
	"encoding/json"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// listeners hands the guest's reports on to those who asked for them. Link.mu
// guards it.
type listeners struct {
	last   *guestapi.Listeners // nil: none came yet
	subs   map[chan guestapi.Listeners]struct{}
	closed bool
}

// Listeners tells of the guest's TCP listeners, now and whenever they change. The
// channel holds the newest report only: whoever is slow misses what is out of date.
// It is closed when ctx or the link ends.
func (l *Link) Listeners(ctx context.Context) (<-chan guestapi.Listeners, error) {
	l.mu.Lock()
	first := l.listeners.subs == nil
	sub := l.listeners.subscribe()
	l.mu.Unlock()
	context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.listeners.unsubscribe(sub)
	})
	if first {
		if err := l.request(ctx, "watch listeners", guestapi.RequestWatchListeners, nil); err != nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.listeners.unsubscribe(sub)
			return nil, err
		}
	}
	return sub, nil
}

// report takes a report in. One that makes no sense is dropped.
func (l *Link) report(payload []byte) {
	var now guestapi.Listeners
	if err := json.Unmarshal(payload, &now); err != nil {
		l.log.Warn("the guest's report of its listeners cannot be read", "error", err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.listeners.last = &now
	for sub := range l.listeners.subs {
		offer(sub, now)
	}
}

func (ls *listeners) subscribe() chan guestapi.Listeners {
	sub := make(chan guestapi.Listeners, 1)
	if ls.closed {
		close(sub)
		return sub
	}
	if ls.subs == nil {
		ls.subs = make(map[chan guestapi.Listeners]struct{})
	}
	ls.subs[sub] = struct{}{}
	if ls.last != nil {
		sub <- *ls.last
	}
	return sub
}

func (ls *listeners) unsubscribe(sub chan guestapi.Listeners) {
	if _, ok := ls.subs[sub]; ok {
		delete(ls.subs, sub)
		close(sub)
	}
}

// close ends all subscriptions, for ever.
func (ls *listeners) close() {
	ls.closed = true
	for sub := range ls.subs {
		ls.unsubscribe(sub)
	}
}

// offer puts now into sub in place of what nobody has taken yet. The caller is the
// only one that sends.
func offer(sub chan guestapi.Listeners, now guestapi.Listeners) {
	select {
	case <-sub:
	default:
	}
	sub <- now
}
