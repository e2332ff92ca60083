package forward

import (
	"context"
	"iter"
	"sync"
)

// EventKind is what happened to a forward.
type EventKind string

// The kinds of event.
const (
	Exposed   EventKind = "exposed"
	Changed   EventKind = "changed" // its transport, health or reason
	Unexposed EventKind = "unexposed"
)

// Event is news of a forward. Its Forward has no Traffic: that changes all the time.
type Event struct {
	Kind    EventKind `json:"event"`
	Forward Forward   `json:"forward"`
}

// Events yields what happens to the forwards, beginning with those that exist, until
// ctx ends or the manager closes. Whoever is slow gets the newest news of each
// forward only.
func (m *Manager) Events(ctx context.Context) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		w := m.watch()
		defer m.unwatch(w)
		for {
			events, ended := w.take()
			for _, e := range events {
				if ctx.Err() != nil || !yield(e) {
					return
				}
			}
			if ended {
				return
			}
			select {
			case <-w.wake:
			case <-ctx.Done():
				return
			}
		}
	}
}

// watcher is one reader of events.
type watcher struct {
	wake chan struct{} // holds a token when there is something to take

	mu     sync.Mutex
	order  []place
	newest map[place]Event // those in order
	ended  bool
}

func (m *Manager) watch() *watcher {
	w := &watcher{wake: make(chan struct{}, 1), newest: make(map[place]Event)}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.sorted() {
		w.put(newEvent(Exposed, f))
	}
	if m.closed {
		w.end()
	}
	m.watchers[w] = struct{}{}
	return w
}

func (m *Manager) unwatch(w *watcher) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.watchers, w)
}

// emit tells all watchers. The caller holds mu.
func (m *Manager) emit(kind EventKind, f *forward) {
	for w := range m.watchers {
		w.put(newEvent(kind, f))
	}
}

func newEvent(kind EventKind, f *forward) Event {
	e := Event{Kind: kind, Forward: f.Forward}
	e.Forward.Traffic = Traffic{}
	return e
}

// put replaces what was not taken yet of the same forward. Who has not heard of a
// forward's beginning does not hear that it changed.
func (w *watcher) put(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := e.Forward.place()
	old, waiting := w.newest[at]
	if !waiting {
		w.order = append(w.order, at)
	} else if old.Kind == Exposed && e.Kind == Changed {
		e.Kind = Exposed
	}
	w.newest[at] = e
	w.notify()
}

// end tells that nothing more will come.
func (w *watcher) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.notify()
}

func (w *watcher) notify() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns what is new, oldest first, and whether that was all there will be.
func (w *watcher) take() ([]Event, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	events := make([]Event, len(w.order))
	for i, at := range w.order {
		events[i] = w.newest[at]
	}
	w.order = nil
	clear(w.newest)
	return events, w.ended
}
