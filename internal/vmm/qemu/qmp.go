package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// commandTimeout bounds a command whose context has no earlier deadline: milliseconds
	// on an idle host, seconds on one that boots twenty VMs at once.
	commandTimeout = 30 * time.Second
	// maxMessage bounds one line from QEMU, which may be under a guest's control.
	maxMessage = 256 << 10
)

// errMonitorLost is wrapped by what commands return once the connection is gone.
var errMonitorLost = errors.New("connection to QEMU's monitor is lost")

// CommandError is QEMU's refusal of a monitor command.
type CommandError struct {
	Command     string
	Class       string // such as GenericError
	Description string
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("QEMU refused %s: %s", e.Command, e.Description)
}

// message is any line from QEMU: the greeting, a reply or an event.
type message struct {
	Greeting *struct{}       `json:"QMP"`
	ID       string          `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// decodeMessage reads one line. It accepts only lines with exactly one meaning.
func decodeMessage(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("decode message of QEMU's monitor: %w", err)
	}
	meanings := 0
	for _, has := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if has {
			meanings++
		}
	}
	if meanings != 1 {
		return message{}, errors.New("decode message of QEMU's monitor: neither greeting, reply nor event")
	}
	return m, nil
}

// monitor speaks QMP, QEMU's protocol of JSON lines. Its methods may be called
// concurrently.
type monitor struct {
	conn    net.Conn
	onEvent func(name string, data json.RawMessage)
	greeted chan struct{}
	done    chan struct{} // closed when nothing more will be read

	writing sync.Mutex // one command on the wire at a time

	mu      sync.Mutex
	lastID  uint64
	waiting map[string]chan message
	err     error // why the connection ended
}

// newMonitor takes conn over and waits for QEMU to greet. onEvent is called for
// each event, in order, and must not wait for the monitor.
func newMonitor(ctx context.Context, conn net.Conn, onEvent func(string, json.RawMessage)) (*monitor, error) {
	m := &monitor{
		conn: conn, onEvent: onEvent,
		greeted: make(chan struct{}), done: make(chan struct{}), waiting: map[string]chan message{},
	}
	go m.read()
	select {
	case <-m.greeted:
	case <-m.done:
		return nil, fmt.Errorf("wait for QEMU's greeting: %w", m.cause())
	case <-ctx.Done():
		m.close()
		return nil, fmt.Errorf("wait for QEMU's greeting: %w", ctx.Err())
	}
	if err := m.execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// execute runs a command. Its result, if wanted, is decoded into result.
func (m *monitor) execute(ctx context.Context, command string, arguments, result any) error {
	return m.executeWith(ctx, nil, command, arguments, result)
}

// giveFile gives QEMU an open file by a name that other commands can use. The caller closes
// its own.
func (m *monitor) giveFile(ctx context.Context, name string, file *os.File) error {
	return m.executeWith(ctx, file, "getfd", map[string]string{"fdname": name}, nil)
}

// executeWith is execute for a command that takes a file, which may be nil.
func (m *monitor) executeWith(ctx context.Context, file *os.File, command string, arguments, result any) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	id, reply, err := m.expect()
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	defer m.forget(id)
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		ID        string `json:"id"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, id, arguments})
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if err := m.write(ctx, append(line, '\n'), file); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	select {
	case r, ok := <-reply:
		switch {
		case !ok:
			return fmt.Errorf("%s: %w", command, m.cause())
		case r.Error != nil:
			return &CommandError{Command: command, Class: r.Error.Class, Description: r.Error.Desc}
		case result == nil:
			return nil
		}
		if err := json.Unmarshal(r.Return, result); err != nil {
			return fmt.Errorf("%s: decode result: %w", command, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: no answer from QEMU: %w", command, ctx.Err())
	}
}

// write sends one line, and with it a file, which may be nil. A line that went out in part
// breaks the connection.
func (m *monitor) write(ctx context.Context, line []byte, file *os.File) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	if err := m.conn.SetWriteDeadline(deadline); err != nil {
		return errors.Join(errMonitorLost, err)
	}
	if err := m.send(line, file); err != nil {
		m.fail(err)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// The connection may be a moment ahead of ctx.
			return fmt.Errorf("%w: %w", context.DeadlineExceeded, m.cause())
		}
		return m.cause()
	}
	return nil
}

func (m *monitor) send(line []byte, file *os.File) error {
	if file == nil {
		_, err := m.conn.Write(line)
		return err
	}
	conn, ok := m.conn.(*net.UnixConn)
	if !ok {
		return errors.New("files cannot be sent over this connection")
	}
	n, _, err := conn.WriteMsgUnix(line, unix.UnixRights(int(file.Fd())), nil)
	if err == nil && n < len(line) {
		_, err = conn.Write(line[n:])
	}
	return err
}

func (m *monitor) expect() (id string, reply chan message, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return "", nil, m.err
	}
	m.lastID++
	id = strconv.FormatUint(m.lastID, 10)
	reply = make(chan message, 1)
	m.waiting[id] = reply
	return id, reply, nil
}

func (m *monitor) forget(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.waiting, id)
}

// read dispatches QEMU's messages until the connection ends.
func (m *monitor) read() {
	defer close(m.done)
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(nil, maxMessage)
	greeted := false
	for lines.Scan() {
		msg, err := decodeMessage(lines.Bytes())
		switch {
		case err != nil:
			m.fail(err)
			return
		case (msg.Greeting != nil) == greeted:
			m.fail(errors.New("QEMU's monitor did not begin with its one greeting"))
			return
		case msg.Greeting != nil:
			greeted = true
			close(m.greeted)
		case msg.Event != "":
			m.onEvent(msg.Event, msg.Data)
		default:
			m.deliver(msg)
		}
	}
	err := lines.Err()
	if err == nil {
		err = io.EOF
	}
	m.fail(err)
}

// deliver hands a reply to who waits for it. Replies that nobody waits for any
// more are dropped.
func (m *monitor) deliver(msg message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if reply, ok := m.waiting[msg.ID]; ok {
		delete(m.waiting, msg.ID)
		reply <- msg // has room for the one reply
	}
}

// fail ends the connection and every command that waits.
func (m *monitor) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err = fmt.Errorf("%w: %w", errMonitorLost, err)
	}
	for id, reply := range m.waiting {
		close(reply)
		delete(m.waiting, id)
	}
	_ = m.conn.Close() // it is of no more use, however that ends
}

func (m *monitor) cause() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// close ends the connection and returns once no event will be dispatched.
func (m *monitor) close() {
	m.fail(net.ErrClosed)
	<-m.done
}

// drain waits until QEMU has closed its end, at most for limit, so that no
// event that it sent is lost.
func (m *monitor) drain(limit time.Duration) {
	// Fails only if the connection is closed already.
	_ = m.conn.SetReadDeadline(time.Now().Add(limit))
	<-m.done
}
