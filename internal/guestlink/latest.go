package guestlink

import (
	"context"
	"sync"
)

// latest hands a value that changes on to those who asked for it. Its zero value is
// ready; its methods may be called concurrently.
type latest[T any] struct {
	mu     sync.Mutex
	last   *T                     // nil: none came yet
	subs   map[chan T]func() bool // with what forgets that they end with a context
	closed bool
}

// subscribe returns a channel that holds the newest value only: whoever is slow misses
// what is out of date. It is closed when ctx ends, or by close.
func (l *latest[T]) subscribe(ctx context.Context) <-chan T {
	sub := make(chan T, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		close(sub)
		return sub
	}
	if l.last != nil {
		sub <- *l.last
	}
	if l.subs == nil {
		l.subs = make(map[chan T]func() bool)
	}
	l.subs[sub] = context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.end(sub)
	})
	return sub
}

// set hands on a new value.
func (l *latest[T]) set(now T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = &now
	for sub := range l.subs {
		select {
		case <-sub: // nobody has taken it yet
		default:
		}
		sub <- now
	}
}

// close ends all subscriptions, for ever.
func (l *latest[T]) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for sub := range l.subs {
		l.end(sub)
	}
}

func (l *latest[T]) end(sub chan T) {
	if forget, ok := l.subs[sub]; ok {
		forget()
		delete(l.subs, sub)
		close(sub)
	}
}
