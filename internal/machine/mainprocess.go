package machine

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"sync"
	"syscall"
	"time"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/timing"
)

// DefaultGrace is how long a main process has to end when the VM is stopped, before the guest
// powers off, which ends all that runs in it.
const DefaultGrace = 10 * time.Second

// Exit codes of main processes that could not be started, as shells have them.
const (
	codeCannotRun = 126
	codeNotFound  = 127
)

// askPause is the pause before the guest is asked again for a main process that it told nonsense of.
const askPause = 100 * time.Millisecond

// mainProcess follows the main process of one run of a VM, and starts it again where that was asked
// for.
type mainProcess struct {
	run    *run
	claim  *store.Claim
	policy RestartPolicy
	signal syscall.Signal // asks it to end

	wanted guestapi.Main
	given  *guestlink.Main // what the guest has, if that is known already
	pause  backOff

	stopOnce sync.Once
	stopping chan struct{} // closed when it is to end for good
	done     chan struct{} // closed when it has, or the machine
}

// newMainProcess prepares for the VM's main process; nil: it has none. What is made is owed a
// follow or an abandon.
func newMainProcess(r *run, claim *store.Claim) *mainProcess {
	rec := claim.Record()
	if len(rec.Main) == 0 {
		return nil
	}
	config := r.identity.config
	return &mainProcess{
		run: r, claim: claim, policy: RestartPolicy(rec.Restart), signal: stopSignal(rec),
		wanted: guestapi.Main{ID: rand.Text(), Exec: guestapi.Exec{
			Argv: rec.Main, Dir: config.WorkingDir, User: config.User,
		}},
		stopping: make(chan struct{}), done: make(chan struct{}),
	}
}

// stopSignal is what asks the VM's main process to end.
func stopSignal(rec store.Record) syscall.Signal {
	if sig, err := ParseSignal(rec.StopSignal); err == nil {
		return sig
	}
	return defaultStopSignal
}

// start has the guest start the process, unless it has it already: it was suspended with it, or
// copied. The error is a *StartError if the guest cannot.
func (m *mainProcess) start(ctx context.Context) error {
	if m == nil {
		return nil
	}
	given, err := m.run.channel.Main(ctx, m.wanted)
	var refused *guestlink.StartError
	if errors.As(err, &refused) {
		return &StartError{Program: refused.Program, NotFound: errors.Is(err, fs.ErrNotExist), Err: refused}
	}
	if err != nil {
		return err
	}
	m.given = given
	m.noteBegun(given.Begun())
	timing.End(ctx, "main")
	return nil
}

// abandon is for a process that is not to be followed: its VM is ended.
func (m *mainProcess) abandon() {
	if m != nil {
		close(m.done)
	}
}

// follow follows the process until it has ended for good, or the machine has. It tells whether it was
// the process, and by itself: then the VM is to end with it.
func (m *mainProcess) follow() (over bool) {
	defer close(m.done)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-m.run.machine.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		state, err := m.await(ctx)
		if err != nil {
			// The channel was lost, and comes again, or the machine has ended.
			if !rest(ctx, nil, askPause) {
				return false
			}
			continue
		}
		restarts := m.noteEnded(state)
		select {
		case <-m.stopping:
			return false
		default:
		}
		if !m.policy.again(state.Status != guestapi.ExitStatus{}, restarts) {
			m.run.log.Info("the main process has ended, and the VM ends with it", "exit_code", state.Status.Code)
			return true
		}
		pause := m.pause.next(state.Ended.Sub(state.Started))
		m.run.log.Info("the main process has ended, and is started again", "exit_code", state.Status.Code, "pause", pause)
		if !rest(ctx, m.stopping, pause) {
			return false
		}
		m.update(func(rec *store.Record) { rec.Restarts++ })
		m.wanted.ID, m.wanted.Replaces = rand.Text(), state.ID
	}
}

// rest waits for so long, and tells whether neither ctx nor stop has ended it.
func rest(ctx context.Context, stop <-chan struct{}, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-stop:
	case <-ctx.Done():
	}
	return false
}

// await has the guest start the process, if it does not have it, and waits for its end. One that
// cannot be started has ended.
func (m *mainProcess) await(ctx context.Context) (guestapi.MainState, error) {
	process := m.given
	m.given = nil
	if process == nil {
		var err error
		process, err = m.run.channel.Main(ctx, m.wanted)
		var refused *guestlink.StartError
		if errors.As(err, &refused) {
			m.run.log.Warn("could not start the main process", "error", err)
			return m.unstarted(err), nil
		}
		if err != nil {
			return guestapi.MainState{}, err
		}
		m.noteBegun(process.Begun())
	}
	stopping := m.stopping
	for {
		select {
		case <-process.Done():
			return process.Ended()
		case <-stopping:
			stopping = nil
			if err := process.Signal(m.signal); err != nil {
				m.run.log.Debug("could not signal the main process", "error", err) // its link is lost
			}
		case <-ctx.Done():
			_ = process.Close() // nothing is to be told any more
			return guestapi.MainState{}, ctx.Err()
		}
	}
}

// unstarted is the state of a process that could not be started. The one that it was to replace is
// what the guest has still.
func (m *mainProcess) unstarted(err error) guestapi.MainState {
	code := codeCannotRun
	if errors.Is(err, fs.ErrNotExist) {
		code = codeNotFound
	}
	now := time.Now()
	return guestapi.MainState{ID: m.wanted.Replaces, Started: now, Ended: now, Status: guestapi.ExitStatus{Code: code}}
}

// end asks the process to end, for good, and waits for that as long as it may take. The guest may
// be paused.
func (m *mainProcess) end(ctx context.Context, grace time.Duration) {
	if m == nil || grace <= 0 {
		return
	}
	if m.run.paused.Load() {
		if err := m.run.machine.Resume(ctx); err != nil {
			return // what follows says so, too
		}
		m.run.paused.Store(false)
	}
	m.stop()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-m.done:
	case <-ctx.Done():
	case <-timer.C:
		m.run.log.Warn("the main process did not end when it was asked to: the guest powers off", "signal", signalName(m.signal), "grace", grace)
	}
}

// stop has the process not started again, and asked to end.
func (m *mainProcess) stop() {
	m.stopOnce.Do(func() { close(m.stopping) })
}

// noteBegun notes that a process runs. Of one whose end is noted nothing is to be said.
func (m *mainProcess) noteBegun(state guestapi.MainState) {
	m.update(func(rec *store.Record) {
		if rec.MainRun == nil || rec.MainRun.ID != state.ID {
			rec.MainRun = &store.MainRun{ID: state.ID, PID: state.PID, Started: past(state.Started)}
		}
	})
}

// noteEnded notes how a process ended, unless that is known, and returns how often there were
// restarts before.
func (m *mainProcess) noteEnded(state guestapi.MainState) (restarts int) {
	m.update(func(rec *store.Record) {
		known := rec.MainRun
		if known != nil && known.ID == state.ID && known.PID == state.PID && !known.Ended.IsZero() {
			return
		}
		rec.MainRun = &store.MainRun{
			ID: state.ID, PID: state.PID, Started: past(state.Started), Ended: past(state.Ended),
			ExitCode: state.Status.Code, Signal: state.Status.Signal,
		}
	})
	return m.claim.Record().Restarts
}

// past is a time that the guest told: what is not over yet by the host's clock is now.
func past(t time.Time) time.Time {
	if now := time.Now(); t.After(now) {
		t = now
	}
	return t.UTC()
}

func (m *mainProcess) update(change func(*store.Record)) {
	if err := m.claim.Update(change); err != nil {
		m.run.log.Warn("could not note what became of the main process", "error", err)
	}
}

// followMain follows the main process of a run, and ends the run with it.
func (v *VM) followMain(r *run) {
	if r.main == nil || !r.main.follow() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	v.life.Lock()
	defer v.life.Unlock()
	v.mu.Lock()
	current := v.run == r
	v.mu.Unlock()
	if !current {
		return // it was ended otherwise
	}
	if err := v.stop(ctx, r, StopOptions{}); err != nil {
		r.log.Warn("could not end the VM with its main process", "error", err)
	}
}
