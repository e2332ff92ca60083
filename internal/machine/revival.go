package machine

import (
	"context"
	"time"

	"github.com/smolvm/smolvm/internal/store"
)

// revival is the start of a VM that has ended without being asked to, which is to come.
type revival struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when it has come, or will not
}

// revive begins the revival of a VM whose run has ended by itself, if that was asked for. The
// caller holds v.mu.
func (v *VM) revive(r *run, claim *store.Claim) {
	rec := claim.Record()
	policy := RestartPolicy(rec.Restart)
	if r.wanted.Load() || r.err != nil || !policy.again(true, rec.Restarts) {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	coming := &revival{cancel: cancel, done: make(chan struct{})}
	v.revival = coming
	pause := v.pause.next(time.Since(rec.Started))
	r.log.Warn("the VM ended without being asked to, and is started again", "pause", pause)
	go func() {
		defer cancel()
		for ok := rest(ctx, nil, pause); ok; ok = rest(ctx, nil, pause) {
			err := v.startAgain(ctx)
			if err == nil || ctx.Err() != nil || !policy.again(true, claim.Record().Restarts) {
				break
			}
			pause = v.pause.next(0)
			r.log.Warn("could not start the VM again, trying once more", "error", err, "pause", pause)
		}
		v.mu.Lock()
		if v.revival == coming {
			v.revival = nil
		}
		v.mu.Unlock()
		close(coming.done)
	}()
}

// startAgain starts a VM whose revival has not been called off, unless it runs.
func (v *VM) startAgain(ctx context.Context) error {
	v.life.Lock()
	defer v.life.Unlock()
	v.mu.Lock()
	claim, r := v.claim, v.run
	v.mu.Unlock()
	if ctx.Err() != nil || claim == nil || r != nil {
		return ctx.Err()
	}
	if err := claim.Update(func(rec *store.Record) { rec.Restarts++ }); err != nil {
		return err
	}
	return v.start(ctx, claim)
}

// callOff calls off the revival of a VM, if one is to come. One that is under way is broken off, and
// ends soon.
func (v *VM) callOff() {
	v.mu.Lock()
	coming := v.revival
	v.revival = nil
	v.mu.Unlock()
	if coming != nil {
		coming.cancel()
	}
}
