package guestlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// StartError says that a command could not be started in the guest: there is no such
// program, or no such directory. It unwraps to a *RefusedError.
type StartError struct {
	Program string // "login shell" if none was given
	Err     error
}

func (e *StartError) Error() string {
	var refused *RefusedError
	if errors.As(e.Err, &refused) {
		return refused.Failure.Error
	}
	return e.Err.Error()
}

func (e *StartError) Unwrap() error { return e.Err }

// Process is a command that runs in the guest.
type Process struct {
	channel ssh.Channel
	ctx     context.Context
	done    chan struct{} // closed when status and err are set
	status  guestapi.ExitStatus
	err     error
}

// Start starts a command in the guest. Nil readers and writers are empty ones. If
// stdout and stderr are the same, at most one goroutine at a time writes to it.
//
// When ctx ends, or a write fails, the command is killed; one that has a terminal is hung
// up on. After Wait nothing is written any more; a write that blocks for ever keeps Wait
// from returning. A detached command is done, with the zero status, as soon as it has
// started. The error is a *StartError if the guest cannot start the command.
func (l *Link) Start(ctx context.Context, e guestapi.Exec, stdin io.Reader, stdout, stderr io.Writer) (*Process, error) {
	program := "login shell"
	if len(e.Argv) > 0 {
		program = e.Argv[0]
	}
	e.Stdin = stdin != nil
	channel, requests, err := l.openToStart(ctx, guestapi.ChannelExec, program, guestapi.Encode(&e))
	if err != nil {
		return nil, err
	}
	p := &Process{channel: channel, ctx: ctx, done: make(chan struct{})}
	go p.run(l, requests, stdin, stdout, stderr)
	return p, nil
}

// openToStart opens the channel of a program that the guest starts. The error is a *StartError if
// it cannot.
func (l *Link) openToStart(ctx context.Context, kind, program string, payload []byte) (ssh.Channel, <-chan *ssh.Request, error) {
	op := fmt.Sprintf("start %q in guest", program)
	if len(payload) > guestapi.MaxPayload {
		return nil, nil, fmt.Errorf("%s: %w: at most %d bytes", op, unix.E2BIG, guestapi.MaxPayload)
	}
	channel, requests, err := l.open(ctx, op, l.conn, kind, payload)
	if refusal, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
		return nil, nil, &StartError{Program: program, Err: refused(op, []byte(refusal.Message))}
	}
	return channel, requests, err
}

// Wait returns how the command ended, once all that it wrote itself is written. A
// command that ended by itself, in whatever way, is no error. Wait may be called
// more than once, and concurrently.
func (p *Process) Wait() (guestapi.ExitStatus, error) {
	<-p.done
	return p.status, p.err
}

// Done is closed when Wait returns at once.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal to the command's process group. One that has ended does
// not mind.
func (p *Process) Signal(sig syscall.Signal) error {
	name := unix.SignalName(sig)
	if len(name) <= 3 {
		return fmt.Errorf("signal command in guest: signal %d has no name", int(sig))
	}
	_, err := p.channel.SendRequest("signal", false, ssh.Marshal(struct{ Name string }{name[3:]}))
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("signal command in guest: %w", err)
	}
	return nil
}

// Resize tells the command's terminal its size, in characters. A command that has ended
// does not mind, nor does one without a terminal.
func (p *Process) Resize(columns, rows int) error {
	if min(columns, rows) < 0 || max(columns, rows) > math.MaxUint16 {
		return fmt.Errorf("resize terminal in guest: there is none of %d by %d characters", columns, rows)
	}
	size := guestapi.WindowChange{Columns: uint32(columns), Rows: uint32(rows)}
	_, err := p.channel.SendRequest("window-change", false, ssh.Marshal(size))
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("resize terminal in guest: %w", err)
	}
	return nil
}

// run carries the command's input and output until it has ended.
func (p *Process) run(l *Link, requests <-chan *ssh.Request, stdin io.Reader, stdout, stderr io.Writer) {
	defer close(p.done)
	if stdin != nil {
		// Nobody waits for this one: the reader may never end. It notices when it
		// next has something to write.
		go func() {
			_, _ = io.Copy(l.wire.Pace(p.channel), stdin)
			_ = p.channel.CloseWrite()
		}()
	}
	out, errOut := writers(stdout, stderr)
	var copying sync.WaitGroup
	copyTo := func(g *gate, from io.Reader) {
		if _, err := io.Copy(g, from); err != nil {
			p.channel.Close() // nobody wants the rest
		}
	}
	copying.Go(func() { copyTo(out, p.channel) })
	copying.Go(func() { copyTo(errOut, p.channel.Stderr()) })

	ended := make(chan struct{})
	var status *guestapi.ExitStatus
	go func() {
		defer close(ended)
		for req := range requests {
			if s, ok := exitStatus(req); ok && status == nil {
				status = &s
			}
			_ = req.Reply(false, nil)
		}
		copying.Wait()
	}()
	select {
	case <-ended:
	case <-p.ctx.Done():
		// The guest kills the command; whether it still can does not matter here.
		p.channel.Close()
		_ = out.shut()
		_ = errOut.shut()
		p.err = p.ctx.Err()
		return
	}
	switch err := errors.Join(out.shut(), errOut.shut()); {
	case err != nil:
		p.err = fmt.Errorf("write output of command: %w", err)
	case status == nil:
		p.err = l.lost("run command in guest", errors.New("it ended without an exit status"))
	default:
		p.status = *status
	}
	p.channel.Close()
}

// exitStatus reads how a command ended from a request that may tell.
func exitStatus(req *ssh.Request) (guestapi.ExitStatus, bool) {
	switch req.Type {
	case "exit-status":
		var m struct{ Code uint32 }
		if ssh.Unmarshal(req.Payload, &m) != nil {
			break
		}
		return guestapi.ExitStatus{Code: int(m.Code)}, true
	case "exit-signal":
		var m guestapi.ExitSignal
		if ssh.Unmarshal(req.Payload, &m) != nil {
			break
		}
		number := int(unix.SignalNum("SIG" + m.Signal))
		if number == 0 {
			number, _ = strconv.Atoi(m.Signal) // 0 if it is no number either
		}
		return guestapi.ExitStatus{Code: 128 + number, Signal: printable(m.Signal)}, true
	}
	return guestapi.ExitStatus{}, false
}

// gate is a writer that can be shut: afterwards nothing is written any more, and
// nothing is being written.
type gate struct {
	mu     *sync.Mutex // of all gates to the same writer
	to     io.Writer
	err    error // of the first write that failed
	isShut bool
}

func (g *gate) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.isShut:
		return len(b), nil
	case g.err != nil:
		return 0, g.err
	}
	n, err := g.to.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	g.err = err
	return n, err
}

// shut returns the error of the first write that failed.
func (g *gate) shut() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.isShut = true
	return g.err
}

// writers makes gates to stdout and stderr.
func writers(stdout, stderr io.Writer) (out, errOut *gate) {
	if stdout == nil {
		stdout = io.Discard
	}
	if stderr == nil {
		stderr = io.Discard
	}
	out = &gate{mu: new(sync.Mutex), to: stdout}
	errOut = &gate{mu: new(sync.Mutex), to: stderr}
	if same(stdout, stderr) {
		errOut.mu = out.mu
	}
	return out, errOut
}

func same(a, b io.Writer) bool {
	return reflect.ValueOf(a).Comparable() && reflect.ValueOf(b).Comparable() && a == b
}
