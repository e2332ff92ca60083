package qemu

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/smolvm/smolvm/internal/sockdir"
)

const (
	// panicMark is how the guest's kernel begins its last words.
	panicMark = "Kernel panic - not syncing: "
	// waitNotice is in what QEMU says before it takes the console's connection.
	waitNotice = "info: QEMU waiting for connection on: "
)

// supervise waits for QEMU's end, releases what belongs to it and says why it
// ended.
func (m *machine) supervise() {
	<-m.process.done
	<-m.relayed // ends with QEMU, which alone could write there
	m.mu.Lock()
	mon := m.monitor
	m.mu.Unlock()
	if mon != nil {
		mon.drain(time.Second)
		mon.close()
	}
	if m.egress != nil {
		if err := m.egress.close(); err != nil {
			m.log.Warn("could not close the guest's way out", "error", err)
		}
	}
	if err := removeSockets(m.dir); err != nil {
		m.log.Warn("could not remove a machine's sockets", "error", err)
	}
	m.console.Close()
	m.stderr.Close()
	m.err = m.cause()
	close(m.done)
}

// removeSockets removes a machine's sockets from its directory.
func removeSockets(path string) error {
	dir, err := sockdir.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // gone with its sockets
	} else if err != nil {
		return err
	}
	return errors.Join(dir.Remove(monitorSocket), dir.Remove(channelSocket), dir.Remove(consoleSocket), dir.Close())
}

// cause tells why QEMU ended.
func (m *machine) cause() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	panicked, isPanic := m.console.LineAfter(panicMark)
	failure := m.process.err
	if errors.Is(failure, errNoStatus) && m.shutdown != "" {
		failure = nil // it was about to end in order
	}
	switch {
	case failure != nil && m.wanted:
		return nil
	case failure != nil:
		return fmt.Errorf("QEMU ended: %w%s", failure, m.logs())
	case m.wanted || m.shutdown == "guest-shutdown":
		return nil
	case isPanic:
		return fmt.Errorf("guest's kernel panicked: %s", panicked)
	case m.shutdown == "guest-reset" || m.shutdown == "":
		// A guest that restarts itself has ended in order: it is not started again.
		return nil
	}
	return fmt.Errorf("QEMU ended: %s%s", m.shutdown, m.logs())
}

// logs returns the ends of the logs, for an error's text.
func (m *machine) logs() string {
	var b strings.Builder
	words := strings.Split(m.stderr.LastLines(6), "\n")
	words = slices.DeleteFunc(words, func(line string) bool { return strings.Contains(line, waitNotice) })
	if s := strings.Join(words, "\n"); s != "" {
		b.WriteString("; QEMU's last words: " + s)
	}
	if s := m.console.LastLines(8); s != "" {
		b.WriteString("; the console's: " + s)
	}
	return b.String()
}
