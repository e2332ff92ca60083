package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/sockdir"
)

const greeting = `{"QMP": {"version": {}, "capabilities": []}}` + "\n"

// fakeQEMU greets, agrees to the capabilities and then leaves the connection to talk.
func fakeQEMU(t *testing.T, talk func(conn net.Conn, lines *bufio.Reader)) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close() //nolint:errcheck // a pipe in memory
		lines := bufio.NewReader(theirs)
		if _, err := io.WriteString(theirs, greeting); err != nil {
			return
		}
		if _, err := answer(theirs, lines, `"return": {}`); err != nil {
			return
		}
		talk(theirs, lines)
	}()
	t.Cleanup(func() {
		_ = ours.Close() // may be closed already
		<-done
	})
	return ours
}

// answer reads one command and replies with body. It returns the command.
func answer(conn net.Conn, lines *bufio.Reader, body string) (command string, err error) {
	line, err := lines.ReadBytes('\n')
	if err != nil {
		return "", err
	}
	var c struct{ Execute, ID string }
	if err := json.Unmarshal(line, &c); err != nil {
		return "", err
	}
	_, err = fmt.Fprintf(conn, `{"id": %q, %s}`+"\n", c.ID, body)
	return c.Execute, err
}

func noEvent(string, json.RawMessage) {}

func meetFake(t *testing.T, conn net.Conn, onEvent func(string, json.RawMessage)) *monitor {
	t.Helper()
	m, err := newMonitor(t.Context(), conn, onEvent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.close)
	return m
}

func TestMonitorRefusal(t *testing.T) {
	m := meetFake(t, fakeQEMU(t, func(conn net.Conn, lines *bufio.Reader) {
		_, _ = answer(conn, lines, `"error": {"class": "CommandNotFound", "desc": "no such thing"}`)
	}), noEvent)
	var refusal *CommandError
	if err := m.execute(t.Context(), "dance", nil, nil); !errors.As(err, &refusal) || refusal.Class != "CommandNotFound" ||
		err.Error() != "QEMU refused dance: no such thing" {
		t.Error(err)
	}
}

// A command that is not answered ends with its context, and the late answer
// does not become another's.
func TestMonitorDeadline(t *testing.T) {
	late := make(chan struct{})
	m := meetFake(t, fakeQEMU(t, func(conn net.Conn, lines *bufio.Reader) {
		line, _ := lines.ReadBytes('\n')
		<-late
		var c struct{ ID string }
		_ = json.Unmarshal(line, &c)
		_, _ = fmt.Fprintf(conn, `{"id": %q, "return": "late"}`+"\n", c.ID)
		_, _ = answer(conn, lines, `"return": "in time"`)
	}), noEvent)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := m.execute(ctx, "first", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	close(late)
	var result string
	if err := m.execute(t.Context(), "second", nil, &result); err != nil || result != "in time" {
		t.Error(result, err)
	}
}

// overdue is a context whose deadline is over, and that is about to say so.
type overdue struct{ context.Context }

func (overdue) Deadline() (time.Time, bool) { return time.Unix(1, 0), true }

// A connection that finds the deadline over before its context does says the same.
func TestMonitorOverdue(t *testing.T) {
	m := meetFake(t, fakeQEMU(t, func(_ net.Conn, lines *bufio.Reader) {
		_, _ = lines.ReadBytes('\n')
	}), noEvent)
	if err := m.execute(overdue{t.Context()}, "first", nil, nil); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errMonitorLost) {
		t.Error(err)
	}
}

// Answers find their commands in whatever order they come.
func TestMonitorConcurrent(t *testing.T) {
	const commands = 50
	m := meetFake(t, fakeQEMU(t, func(conn net.Conn, lines *bufio.Reader) {
		var replies []string
		for range commands {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				return
			}
			var c struct {
				ID        string
				Arguments int
			}
			_ = json.Unmarshal(line, &c)
			replies = append(replies, fmt.Sprintf(`{"event": "NOISE"}`+"\n"+`{"id": %q, "return": %d}`+"\n", c.ID, c.Arguments))
		}
		for i := range replies {
			_, _ = io.WriteString(conn, replies[len(replies)-1-i])
		}
	}), noEvent)
	var group sync.WaitGroup
	for i := range commands {
		group.Go(func() {
			var got int
			if err := m.execute(t.Context(), "echo", i, &got); err != nil || got != i {
				t.Errorf("%d got %d, %v", i, got, err)
			}
		})
	}
	group.Wait()
}

// Whatever a hostile QEMU says, every waiting command ends, with an error that
// says that the connection is lost.
func TestMonitorHostile(t *testing.T) {
	tests := map[string]string{
		"hangs up":        "",
		"no JSON":         "hello\n",
		"endless line":    strings.Repeat("x", maxMessage+1),
		"greets again":    greeting,
		"no meaning":      "{}\n",
		"two meanings":    `{"return": {}, "event": "X"}` + "\n",
		"array":           "[]\n",
		"id of no string": `{"id": 7, "return": {}}` + "\n",
		"deep":            strings.Repeat("[", 20000) + "\n",
	}
	for name, says := range tests {
		t.Run(name, func(t *testing.T) {
			m := meetFake(t, fakeQEMU(t, func(conn net.Conn, lines *bufio.Reader) {
				_, _ = lines.ReadBytes('\n')
				_, _ = io.WriteString(conn, says)
			}), noEvent)
			if err := m.execute(t.Context(), "anything", nil, nil); !errors.Is(err, errMonitorLost) {
				t.Error(err)
			}
			if err := m.execute(t.Context(), "anything", nil, nil); !errors.Is(err, errMonitorLost) {
				t.Error("afterwards:", err)
			}
		})
	}
}

// A QEMU that does not read blocks nobody for ever.
func TestMonitorDeaf(t *testing.T) {
	release := make(chan struct{})
	m := meetFake(t, fakeQEMU(t, func(net.Conn, *bufio.Reader) { <-release }), noEvent)
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := m.execute(ctx, "anything", nil, nil); !errors.Is(err, errMonitorLost) {
		t.Error(err)
	}
}

func TestMonitorNoGreeting(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close() //nolint:errcheck // a pipe in memory
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := newMonitor(ctx, ours, noEvent); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestMonitorRealQEMU(t *testing.T) {
	dir, err := sockdir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close() //nolint:errcheck // only looked things up in
	socket, err := dir.Listen(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	var files inheritance
	cmd := exec.Command(defaultBinary, "-M", "none", "-nodefaults", "-display", "none",
		"-chardev", socketChardev("q", files.add(socket), "off"), "-mon", "chardev=q,mode=control")
	cmd.ExtraFiles, cmd.Stderr = files.files, t.Output()
	qemu, err := startProcess(cmd, false)
	if err != nil {
		t.Fatal(err)
	}
	defer qemu.kill() //nolint:errcheck // it quits before
	if err := socket.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the next owner connects as the first did
		conn, err := dir.Dial(t.Context(), "s")
		if err != nil {
			t.Fatal(err)
		}
		m := meetFake(t, conn, noEvent)
		var status struct{ Status string }
		if err := m.execute(t.Context(), "query-status", nil, &status); err != nil || status.Status != "running" {
			t.Error(status, err)
		}
		m.close()
	}
	events := make(chan string, 10)
	conn, err := dir.Dial(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	m := meetFake(t, conn, func(name string, _ json.RawMessage) { events <- name })
	if err := m.execute(t.Context(), "quit", nil, nil); err != nil {
		t.Error(err)
	}
	m.drain(5 * time.Second)
	if name := <-events; name != "SHUTDOWN" {
		t.Error("first event:", name)
	}
	<-qemu.done
	if qemu.err != nil {
		t.Error(qemu.err)
	}
}

func FuzzDecodeMessage(f *testing.F) {
	for _, seed := range []string{greeting, `{"return":{},"id":"1"}`, `{"error":{"class":"a","desc":"b"}}`, `{"event":"E","data":{}}`, "null", "[]"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decodeMessage(line)
		if err != nil {
			return
		}
		if m.Greeting == nil && m.Return == nil && m.Error == nil && m.Event == "" {
			t.Errorf("%q has no meaning", line)
		}
	})
}

// FuzzMonitor lets a fake QEMU say anything after its greeting: nothing hangs
// and nothing panics.
func FuzzMonitor(f *testing.F) {
	f.Add([]byte(`{"return":{},"id":"1"}` + "\n" + `{"event":"E"}` + "\n" + `{"return":7,"id":"2"}` + "\n"))
	f.Add([]byte("{\n"))
	f.Fuzz(func(t *testing.T, says []byte) {
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(theirs, io.MultiReader(strings.NewReader(greeting), bytes.NewReader(says)))
			_ = theirs.Close()
		}()
		go io.Copy(io.Discard, theirs) //nolint:errcheck // until it is closed
		m, err := newMonitor(t.Context(), ours, noEvent)
		if err == nil {
			var result int
			_ = m.execute(t.Context(), "anything", nil, &result) // any error will do
			m.close()
		}
		<-done
	})
}
