package control

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/machine"
)

// open makes a request whose connection is then upgraded. It does not depend on ctx afterwards.
func (c *client) open(ctx context.Context, path string, body any) (*stream, http.Header, error) {
	x, err := c.exchange(ctx, hangUp, http.MethodPost, path, body, http.StatusSwitchingProtocols)
	if err != nil {
		return nil, nil, err
	}
	if !x.detach() {
		_ = x.stream.Close()
		return nil, nil, ctx.Err()
	}
	return &x.stream, x.answer.Header, nil
}

// process is a command that the owner started for this process.
type process struct {
	client *client
	ctx    context.Context
	id     string
	done   chan struct{}
	err    error // valid once done is closed
}

// StartCommand starts a command. When ctx ends it is killed, by hanging up.
func (c *client) StartCommand(ctx context.Context, command machine.Command) (machine.Process, error) {
	exec := command.Exec
	exec.Stdin = command.Stdin != nil
	s, header, err := c.open(ctx, pathCommands, exec)
	if err != nil {
		return nil, err
	}
	p := &process{client: c, ctx: ctx, id: header.Get(headerCommand), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = c.converse(ctx, s, conversation{in: command.Stdin, out: command.Stdout, errOut: command.Stderr})
	}()
	return p, nil
}

// conversation is what goes over an upgraded connection.
type conversation struct {
	in          io.Reader // may be nil
	out, errOut io.Writer // may be nil
	// whole lets it fail if in does, rather than take that for the input's end.
	whole bool
}

// converse carries input and output until the owner tells the outcome, and returns that.
func (c *client) converse(ctx context.Context, s *stream, talk conversation) error {
	defer s.Close() //nolint:errcheck // the outcome is known, or nobody waits for it
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	input := newCredit(&frameWriter{to: s})
	defer input.end()
	failed := make(chan error, 1)
	if talk.in != nil {
		// Nobody waits for this one: the reader may never end. It notices when it next has
		// something to write.
		go func() {
			err := input.send(talk.in)
			if err != nil && !errors.Is(err, io.EOF) && talk.whole {
				failed <- err
				_ = s.Close()
				return
			}
			_ = input.frames.write(frameInput, nil)
		}()
	}
	o, err := talk.listen(s, input)
	select {
	case failure := <-failed:
		return failure
	default:
	}
	switch {
	case err == nil:
		return o.err()
	case errors.Is(err, errOwnerLost) || ctx.Err() != nil:
		return c.lost(ctx, err)
	}
	return err
}

// listen reads what the owner sends until it tells the outcome.
func (talk conversation) listen(s *stream, input *credit) (outcome, error) {
	writers := map[frameKind]io.Writer{frameOutput: talk.out, frameErrors: talk.errOut}
	buffer := make([]byte, maxFrame)
	for {
		kind, data, err := readFrame(s, buffer)
		if err != nil {
			return outcome{}, fmt.Errorf("%w: %w", errOwnerLost, err)
		}
		switch w := writers[kind]; {
		case kind == frameFinished:
			var o outcome
			if err := json.Unmarshal(data, &o); err != nil {
				return outcome{}, fmt.Errorf("%w: %w", errFrame, err)
			}
			return o, nil
		case kind == frameCredit && len(data) == 4:
			input.add(int(binary.BigEndian.Uint32(data)))
		case w != nil:
			if _, err := w.Write(data); err != nil {
				return outcome{}, fmt.Errorf("write output: %w", err)
			}
		}
	}
}

// Wait implements machine.Process.
func (p *process) Wait() error {
	<-p.done
	if errors.Is(p.err, errOwnerLost) {
		return fmt.Errorf("run command: %w: what became of the command is not known", p.err)
	}
	return p.err
}

// Signal implements machine.Process.
func (p *process) Signal(sig os.Signal) error {
	number, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal command: %v is no signal of Linux", sig)
	}
	return p.tell(pathSignal, signalRequest{int(number)})
}

// Resize implements machine.Process.
func (p *process) Resize(columns, rows int) error {
	return p.tell(pathResize, resizeRequest{columns, rows})
}

func (p *process) tell(path string, body any) error {
	return p.client.post(p.ctx, strings.Replace(path, "{id}", p.id, 1), body)
}

// Files moves files.
func (c *client) Files(ctx context.Context, op guestapi.Files, in io.Reader, out io.Writer) error {
	s, _, err := c.open(ctx, pathFiles, op)
	if err != nil {
		return err
	}
	return c.converse(ctx, s, conversation{in: in, out: out, whole: true})
}

// Dial connects to an address in the guest.
func (c *client) Dial(ctx context.Context, address string) (net.Conn, error) {
	s, _, err := c.open(ctx, pathDial, dialRequest{address})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// CloseWrite ends what is sent.
func (s *stream) CloseWrite() error { return s.Conn.(*net.UnixConn).CloseWrite() }
