package network

import (
	"slices"
	"sync"

	"github.com/smolvm/smolvm/internal/forward"
)

// flusher makes the kernel forget what is left of closed TCP connections while nobody
// waits: the kernel goes through all that it tracks for that, which takes ten
// milliseconds where there are tens of thousands. Its zero value is ready; its methods
// may be called concurrently.
type flusher struct {
	done sync.WaitGroup // the goroutine that works, if any

	mu      sync.Mutex
	queued  []forward.Mapping
	working []forward.Mapping
	changed chan struct{} // closed when working is done
}

// add has the connections of mappings forgotten soon.
func (f *flusher) add(mappings []forward.Mapping, flush func([]forward.Mapping)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queued = append(f.queued, mappings...)
	if f.changed == nil {
		f.changed = make(chan struct{})
		f.done.Go(func() { f.work(flush) })
	}
}

func (f *flusher) work(flush func([]forward.Mapping)) {
	for f.next() {
		flush(f.working)
	}
}

// next begins with all that is queued. It returns false if that is nothing.
func (f *flusher) next() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.changed)
	f.working, f.queued = f.queued, nil
	if len(f.working) == 0 {
		f.changed = nil
		return false
	}
	f.changed = make(chan struct{})
	return true
}

// wait returns once no connections of mappings are to be forgotten any more: new ones
// might be taken for them.
func (f *flusher) wait(mappings []forward.Mapping) {
	for {
		f.mu.Lock()
		busy := slices.ContainsFunc(mappings, func(m forward.Mapping) bool {
			return slices.Contains(f.working, m) || slices.Contains(f.queued, m)
		})
		changed := f.changed
		f.mu.Unlock()
		if !busy {
			return
		}
		<-changed
	}
}
