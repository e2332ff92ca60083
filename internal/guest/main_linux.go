package guest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// mainProcess is the guest's main process, the one that there was last. How it ended is known
// for as long as the guest runs: there may be no host to be told of it at that moment.
type mainProcess struct {
	mu    sync.Mutex // held while one is started
	child *child     // nil: there was none yet
	state guestapi.MainState
	ended chan struct{} // closed once state says how it ended
}

// serveMain serves a guestapi.ChannelMain channel.
func (s *Server) serveMain(ctx context.Context, open ssh.NewChannel) {
	var wanted guestapi.Main
	err := guestapi.Decode(open.ExtraData(), &wanted)
	if err != nil {
		err = fmt.Errorf("read main process: %w", err)
	} else {
		err = s.haveMain(ctx, wanted)
	}
	if err != nil {
		reject(open, err)
		return
	}
	channel, requests, err := open.Accept()
	if err != nil {
		return
	}
	defer channel.Close()
	child, ended, state := s.main.current()
	sendMainState(channel, state)
	for {
		select {
		case req, ok := <-requests:
			if !ok {
				return
			}
			_ = req.Reply(req.Type == guestapi.RequestMainSignal && signalMain(child, req.Payload), nil)
		case <-ended:
			if state.Ended.IsZero() {
				_, _, state = s.main.current()
				sendMainState(channel, state)
			}
			return
		}
	}
}

func sendMainState(channel ssh.Channel, state guestapi.MainState) {
	_, _ = channel.SendRequest(guestapi.RequestMainState, false, guestapi.Encode(&state))
}

// signalMain sends a main process a signal. It reports whether it could.
func signalMain(c *child, payload []byte) bool {
	var sig guestapi.MainSignal
	return guestapi.Decode(payload, &sig) == nil && c.signalAlone(unix.Signal(sig.Number)) == nil
}

// haveMain starts the main process that is wanted, unless there is one that it does not replace.
func (s *Server) haveMain(ctx context.Context, wanted guestapi.Main) error {
	switch e := wanted.Exec; {
	case wanted.ID == "" || len(e.Argv) == 0:
		return errors.New("a main process has an ID and a program")
	case e.Stdin || e.Terminal != nil || e.Detach || e.PowerOff:
		return errors.New("a main process has neither input nor a terminal")
	}
	cmd, err := s.command(ctx, wanted.Exec)
	if err != nil {
		return err
	}
	m := &s.main
	m.mu.Lock()
	defer m.mu.Unlock()
	running := m.child != nil && m.state.Ended.IsZero()
	if m.state.ID == wanted.ID || m.state.ID != wanted.Replaces || running {
		return nil
	}
	child, out, err := s.startLogged(cmd)
	if err != nil {
		return err
	}
	m.child, m.ended = child, make(chan struct{})
	m.state = guestapi.MainState{ID: wanted.ID, PID: child.pid, Started: time.Now()}
	go m.await(child, out, m.ended)
	return nil
}

// await notes how a main process ended, once what it wrote is on the console.
func (m *mainProcess) await(c *child, out *output, ended chan struct{}) {
	<-c.done
	at := time.Now()
	out.commandEnded()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Ended, m.state.Status = at, exitStatusOf(c.status)
	close(ended)
}

// current returns the main process that there is.
func (m *mainProcess) current() (*child, <-chan struct{}, guestapi.MainState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.child, m.ended, m.state
}

// exitStatusOf says how a command ended, to the host.
func exitStatusOf(status unix.WaitStatus) guestapi.ExitStatus {
	if !status.Signaled() {
		return guestapi.ExitStatus{Code: status.ExitStatus()}
	}
	return guestapi.ExitStatus{Code: signalCode + int(status.Signal()), Signal: signalName(status.Signal())}
}

// signalCode is what the exit code of a command that a signal ended is beyond the signal's number.
const signalCode = 128
