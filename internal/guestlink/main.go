package guestlink

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// errNoState says that a guest tells something else than how its main process is.
var errNoState = errors.New("it tells something else")

// Main is the guest's main process. It does not depend on the link, which only tells of it.
type Main struct {
	channel ssh.Channel
	begun   guestapi.MainState
	done    chan struct{} // closed when ended and err are set
	ended   guestapi.MainState
	err     error
}

// Main has the guest run its main process, unless it has one that is not to be replaced, which is
// what is returned then. The error is a *StartError if the guest cannot start it.
func (l *Link) Main(ctx context.Context, wanted guestapi.Main) (*Main, error) {
	program := wanted.Exec.Argv[0]
	channel, requests, err := l.openToStart(ctx, guestapi.ChannelMain, program, guestapi.Encode(&wanted))
	if err != nil {
		return nil, err
	}
	m := &Main{channel: channel, done: make(chan struct{})}
	begun := make(chan guestapi.MainState, 1)
	go m.run(l, requests, begun)
	select {
	case m.begun = <-begun:
		return m, nil
	case <-m.done:
		select {
		case m.begun = <-begun: // it has ended in the same moment
			return m, nil
		default:
			return nil, m.err
		}
	case <-ctx.Done():
		_ = m.Close() // nobody waits for it
		return nil, fmt.Errorf("start %q in guest: %w", program, ctx.Err())
	}
}

// run takes in what the guest tells, until the process has ended or nothing can follow.
func (m *Main) run(l *Link, requests <-chan *ssh.Request, begun chan<- guestapi.MainState) {
	const op = "follow main process in guest"
	defer close(m.done)
	told := false
	for req := range requests {
		var state guestapi.MainState
		err := errNoState
		if req.Type == guestapi.RequestMainState {
			err = guestapi.Decode(req.Payload, &state)
		}
		_ = req.Reply(false, nil)
		if err == nil && len(state.ID) > maxID {
			err = errNoState
		}
		if err != nil {
			m.err = l.lost(op, err)
			break
		}
		state.PID, state.Status = max(state.PID, 0), plausible(state.Status)
		if !told {
			begun <- state
			told = true
		}
		if !state.Ended.IsZero() {
			m.ended = state
			break
		}
	}
	if m.err == nil && m.ended.Ended.IsZero() {
		m.err = l.lost(op, errors.New("the guest tells no more of it"))
	}
	_ = m.channel.Close() // all was told
	go ssh.DiscardRequests(requests)
}

const (
	maxID       = 64  // bytes of a process's ID: the host's own are shorter
	maxExitCode = 255 // the last that there is
)

// plausible makes of what a guest says a status that there can be.
func plausible(status guestapi.ExitStatus) guestapi.ExitStatus {
	if status.Code < 0 || status.Code > maxExitCode {
		status.Code = maxExitCode
	}
	status.Signal = printable(status.Signal)
	return status
}

// Begun is how the process was when the guest was asked for it. It may have ended.
func (m *Main) Begun() guestapi.MainState { return m.begun }

// Done is closed when Ended returns at once.
func (m *Main) Done() <-chan struct{} { return m.done }

// Ended returns how the process was when it had ended. The error wraps ErrLost if the link is lost
// before; the guest tells of it again when it is asked for the same process again.
func (m *Main) Ended() (guestapi.MainState, error) {
	<-m.done
	return m.ended, m.err
}

// Signal sends a signal to the process alone. One that has ended does not mind.
func (m *Main) Signal(sig syscall.Signal) error {
	payload := guestapi.Encode(&guestapi.MainSignal{Number: int(sig)})
	if _, err := m.channel.SendRequest(guestapi.RequestMainSignal, false, payload); err != nil {
		return fmt.Errorf("signal main process in guest: %w", err)
	}
	return nil
}

// Close lets go of the process, which goes on.
func (m *Main) Close() error { return m.channel.Close() }

// Main is Link.Main. It is tried again when the link is lost meanwhile.
func (c *Channel) Main(ctx context.Context, wanted guestapi.Main) (*Main, error) {
	return again(ctx, c, func(l *Link) (*Main, error) { return l.Main(ctx, wanted) })
}
