package guest

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// output carries what a command writes to the host.
//
// A command may leave children behind that hold its output: a server started
// with "&". The command's own end ends its output nevertheless, but the pipe must
// then still be read, or the server would be stuck or killed by its own log lines.
type output struct {
	from *os.File
	to   io.Writer
	// terminal tells that from is a terminal's master, which the job closes: that hangs
	// up, and a command may have closed its terminal and not have ended yet.
	terminal bool
	// delivered is closed once everything that the command wrote is in to.
	delivered chan struct{}
}

// startOutput begins to carry. It owns from from then on, unless that is a terminal's
// master.
func startOutput(from *os.File, to io.Writer, terminal bool) *output {
	o := &output{from: from, to: to, terminal: terminal, delivered: make(chan struct{})}
	go o.run()
	return o
}

// commandEnded tells that the command has ended, and waits until what it wrote
// is delivered.
func (o *output) commandEnded() {
	// A read that waits ends; one that begins fails at once.
	_ = o.from.SetReadDeadline(time.Unix(1, 0))
	<-o.delivered
}

func (o *output) run() {
	if !o.terminal {
		defer o.from.Close()
	}
	sink := &sink{Writer: o.to}
	_, err := io.CopyBuffer(sink, struct{ io.Reader }{o.from}, make([]byte, 32<<10))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		close(o.delivered)
		return
	}
	_ = o.from.SetReadDeadline(time.Time{})
	ended := o.copyRest(sink)
	close(o.delivered)
	if !ended {
		_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{o.from}, make([]byte, 512))
	}
}

// copyRest copies what is there now. It reports whether nothing can follow.
func (o *output) copyRest(to io.Writer) (ended bool) {
	raw, err := o.from.SyscallConn()
	if err != nil {
		return true
	}
	buf := make([]byte, 32<<10)
	for left := o.rest(); left > 0; {
		var n int
		var readErr error
		err := raw.Read(func(fd uintptr) bool {
			n, readErr = unix.Read(int(fd), buf[:min(left, len(buf))])
			return true
		})
		switch {
		case err != nil:
			return true
		case errors.Is(readErr, unix.EINTR):
			continue
		case errors.Is(readErr, unix.EAGAIN):
			return false
		case readErr != nil || n == 0:
			return true
		}
		_, _ = to.Write(buf[:n])
		left -= n
	}
	return false
}

// rest bounds what the command can have left when it ended, in bytes. A pipe tells; of a
// terminal it is the line discipline's buffer and what is on its way to it, and reading
// finds the true end.
func (o *output) rest() int {
	if o.terminal {
		return 128 << 10
	}
	var n int
	if raw, err := o.from.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	return n
}

// sink writes until a write fails, and then pretends to: who writes must go on
// even if nobody is there to read.
type sink struct {
	io.Writer
	failed bool
}

func (s *sink) Write(p []byte) (int, error) {
	if !s.failed {
		_, err := s.Writer.Write(p)
		s.failed = err != nil
	}
	return len(p), nil
}
