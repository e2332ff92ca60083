package oci

import (
	"io"
	"sync"
	"time"
)

// State is what happens to a layer.
type State string

// The states of a layer. It ends in Done or Cached, unless the whole fails.
const (
	Waiting     State = "waiting"     // for its turn, or for another process that fetches it
	Verifying   State = "verifying"   // what there is of it is read
	Downloading State = "downloading" // from wherever it is, files included
	Uploading   State = "uploading"   // to a registry
	Done        State = "done"
	Cached      State = "cached" // it was there, or another process has fetched it
)

// Progress is how far a layer is.
type Progress struct {
	Digest      string // of the layer's blob
	State       State
	Done, Total int64 // bytes
}

// progressInterval is how often at most progress is told while the state stays the same.
const progressInterval = 100 * time.Millisecond

// teller tells of the progress of all layers.
type teller struct {
	mu   sync.Mutex
	tell func(Progress)
}

// layerTeller tells of the progress of one.
type layerTeller struct {
	*teller
	last Progress
	told time.Time
}

func (t *teller) layer(d descriptor) *layerTeller {
	return &layerTeller{teller: t, last: Progress{Digest: d.Digest, Total: d.Size}}
}

func (l *layerTeller) report(state State, done int64) {
	now := time.Now()
	if state == l.last.State && now.Sub(l.told) < progressInterval {
		return
	}
	l.last.State, l.last.Done, l.told = state, done, now
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tell(l.last)
}

// told is a reader that tells how much was read.
type told struct {
	io.Reader
	done int64
	tell func(int64)
}

// Read is io.Reader's.
func (t *told) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	if t.done += int64(n); t.tell != nil && n > 0 {
		t.tell(t.done)
	}
	return n, err
}
