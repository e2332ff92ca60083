package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/machine"
)

// upgradeTo is the protocol that a connection is upgraded to: frames, or for pathDial the
// bytes of the connection into the guest.
const upgradeTo = "smolvm"

// headerCommand is the ID of a command that was started.
const headerCommand = "Smolvm-Command"

// lingerTimeout bounds how long the owner waits for a client to hang up after the end.
const lingerTimeout = 5 * time.Second

// stream is an upgraded connection.
type stream struct {
	net.Conn
	reader io.Reader // begins with what came along with the request or its answer
}

func (s *stream) Read(p []byte) (int, error) { return s.reader.Read(p) }

// upgrade takes the connection over from HTTP.
func upgrade(w http.ResponseWriter, header http.Header) (*stream, error) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over connection: %w", err)
	}
	early, err := buffered.Peek(buffered.Reader.Buffered())
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	answer := http.Response{
		StatusCode: http.StatusSwitchingProtocols, ProtoMajor: 1, ProtoMinor: 1, Header: w.Header().Clone(),
	}
	for name, values := range header {
		answer.Header[name] = values
	}
	answer.Header.Set("Connection", "Upgrade")
	answer.Header.Set("Upgrade", upgradeTo)
	// HTTP's deadlines are over.
	if err := errors.Join(conn.SetDeadline(time.Time{}), answer.Write(conn)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &stream{conn, io.MultiReader(bytes.NewReader(early), conn)}, nil
}

// end closes the connection when the client has hung up, so that what was last written is
// read before that.
func (s *stream) end(hungUp <-chan struct{}) {
	_ = s.CloseWrite()
	_ = s.SetReadDeadline(time.Now().Add(lingerTimeout))
	<-hungUp
	_ = s.Close()
}

// command runs a command. When the client hangs up, the command is killed.
func (s *server) command(w http.ResponseWriter, r *http.Request) {
	var exec guestapi.Exec
	if err := readBody(r, &exec); err != nil {
		fail(w, err)
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	// The command begins to read and write before the connection is taken over.
	out := newLateWriter()
	command := machine.Command{Exec: exec, Stdout: out.stream(frameOutput), Stderr: out.stream(frameErrors)}
	var input *queue
	if exec.Stdin {
		input = newQueue(out.grant)
		command.Stdin = input
	}
	process, err := s.vm.StartCommand(ctx, command)
	if err != nil {
		fail(w, err)
		return
	}
	id := s.register(process)
	defer s.unregister(id)
	conn, err := upgrade(w, http.Header{headerCommand: {id}})
	if err != nil {
		out.fail(err)
		s.log.Debug("client of a command is gone", "error", err)
		return
	}
	s.converse(conn, out.begin(conn), input, cancel, process.Wait)
}

// converse takes the client's input while work goes on, and tells the client how that ended. When
// the client hangs up before, cancel is called.
func (s *server) converse(conn *stream, frames *frameWriter, input *queue, cancel func(), work func() error) {
	hungUp := make(chan struct{})
	go func() {
		defer close(hungUp)
		defer cancel()
		conn.takeInput(input)
	}()
	if err := frames.finish(newOutcome(work())); err != nil {
		s.log.Debug("client of a command or a copy is gone", "error", err)
	}
	if input != nil {
		input.drop()
	}
	conn.end(hungUp)
}

// takeInput takes the client's frames until it hangs up.
func (s *stream) takeInput(input *queue) {
	buffer := make([]byte, maxFrame)
	for {
		kind, data, err := readFrame(s, buffer)
		switch {
		case err == nil && kind != frameInput:
			err = errFrame
		case err != nil || input == nil:
		case len(data) == 0:
			input.end(io.EOF)
		default:
			err = input.put(data)
		}
		if err != nil {
			if input != nil {
				input.end(io.ErrUnexpectedEOF)
			}
			return
		}
	}
}

func (s *server) register(p machine.Process) (id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastID++
	id = strconv.Itoa(s.lastID)
	s.commands[id] = p
	return id
}

func (s *server) unregister(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.commands, id)
}

// withCommand does something to a command that runs. One that has ended does not mind.
func (s *server) withCommand(r *http.Request, f func(machine.Process) error) error {
	s.mu.Lock()
	p := s.commands[r.PathValue("id")]
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	return f(p)
}

func (s *server) signal(w http.ResponseWriter, r *http.Request) {
	take(func(_ context.Context, body signalRequest) error {
		return s.withCommand(r, func(p machine.Process) error { return p.Signal(syscall.Signal(body.Signal)) })
	})(w, r)
}

func (s *server) resize(w http.ResponseWriter, r *http.Request) {
	take(func(_ context.Context, body resizeRequest) error {
		return s.withCommand(r, func(p machine.Process) error { return p.Resize(body.Columns, body.Rows) })
	})(w, r)
}

// files moves files. When the client hangs up, it is broken off.
func (s *server) files(w http.ResponseWriter, r *http.Request) {
	var op guestapi.Files
	if err := readBody(r, &op); err != nil {
		fail(w, err)
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	conn, err := upgrade(w, nil)
	if err != nil {
		s.log.Debug("client of a copy is gone", "error", err)
		return
	}
	frames := &frameWriter{to: conn}
	var in io.Reader
	var input *queue
	if op.Op == guestapi.FilesUnpack || op.Op == guestapi.FilesWrite {
		input = newQueue(frames.grant)
		in = input
	}
	s.converse(conn, frames, input, cancel, func() error { return s.vm.Files(ctx, op, in, frames.stream(frameOutput)) })
}

// dial connects the client to an address in the guest.
func (s *server) dial(w http.ResponseWriter, r *http.Request) {
	var body dialRequest
	if err := readBody(r, &body); err != nil {
		fail(w, err)
		return
	}
	guest, err := s.vm.Dial(r.Context(), body.Address)
	if err != nil {
		fail(w, err)
		return
	}
	defer guest.Close() //nolint:errcheck // both directions have ended
	conn, err := upgrade(w, nil)
	if err != nil {
		s.log.Debug("client of a connection is gone", "error", err)
		return
	}
	defer conn.Close() //nolint:errcheck // both directions have ended
	join(conn, guest)
}

// halfCloser is a connection whose directions end one by one.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// join carries data both ways until both ends have ended, or one has failed.
func join(client *stream, guest net.Conn) {
	var passing sync.WaitGroup
	carry := func(to net.Conn, from io.Reader) {
		if pass(to, from) != nil {
			// The other direction leads nowhere now.
			_ = guest.Close()
			_ = client.Close()
		}
	}
	passing.Go(func() { carry(guest, client) })
	passing.Go(func() { carry(client.Conn, guest) })
	passing.Wait()
}

// pass carries data one way, and the end of them.
func pass(to net.Conn, from io.Reader) error {
	if _, err := io.Copy(to, from); err != nil {
		return err
	}
	if half, ok := to.(halfCloser); ok {
		return half.CloseWrite()
	}
	return nil
}
