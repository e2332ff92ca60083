// Package timing tells what something that must be fast spends its time on.
package timing

import (
	"context"
	"sync"
	"time"
)

// Stage is one step of several that follow one another.
type Stage struct {
	Name string        `json:"stage"`
	Took time.Duration `json:"took_ns"`
}

// Watch measures stages: each from the end of the one before, so that they add up to the
// whole. Its methods may be called concurrently, also on nil, which measures nothing.
type Watch struct {
	mu     sync.Mutex
	last   time.Time
	stages []Stage
}

// NewWatch begins the first stage.
func NewWatch() *Watch { return &Watch{last: time.Now()} }

// End ends a stage, which is called so, and begins the next. One that follows itself is
// one stage.
func (w *Watch) End(stage string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	took := now.Sub(w.last)
	w.last = now
	if n := len(w.stages); n > 0 && w.stages[n-1].Name == stage {
		w.stages[n-1].Took += took
		return
	}
	w.stages = append(w.stages, Stage{stage, took})
}

// Stages are those that have ended.
func (w *Watch) Stages() []Stage {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Stage(nil), w.stages...)
}

type key struct{}

// With has all that is done with the context be measured by w. A nil w measures none of it.
func With(ctx context.Context, w *Watch) context.Context { return context.WithValue(ctx, key{}, w) }

// End ends a stage of the context's Watch, if it has one.
func End(ctx context.Context, stage string) {
	w, _ := ctx.Value(key{}).(*Watch)
	w.End(stage)
}
