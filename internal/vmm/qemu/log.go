package qemu

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"unicode"
)

const (
	// logLimit is when a log file is set aside for a new one, of which there
	// are two: a guest must not fill the host's disk by talking.
	logLimit = 1 << 20
	// tailLimit is how much of a log's end is kept for error messages.
	tailLimit = 16 << 10
)

// tail is a writer that keeps the end of what is written to it. It may be used
// concurrently.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p[max(0, len(p)-tailLimit):]...)
	if extra := len(t.text) - tailLimit; extra > 0 {
		t.text = append(t.text[:0], t.text[extra:]...)
	}
	return len(p), nil
}

// lastLines returns at most n of the last lines, without what terminals would act on.
func (t *tail) lastLines(n int) string {
	t.mu.Lock()
	text := string(t.text)
	t.mu.Unlock()
	text = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r != unicode.ReplacementChar && unicode.IsPrint(r) {
			return r
		}
		return -1
	}, text)
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// lineAfter returns the rest of the last line that has mark in it, and whether
// there is one.
func (t *tail) lineAfter(mark string) (rest string, ok bool) {
	text := t.lastLines(tailLimit)
	i := strings.LastIndex(text, mark)
	if i < 0 {
		return "", false
	}
	rest, _, _ = strings.Cut(text[i+len(mark):], "\n")
	return strings.TrimSpace(rest), true
}

// boundedLog is a tail that keeps more of the end in a file. Once that is full
// it becomes name.1, in place of the one before.
type boundedLog struct {
	tail
	path  string
	limit int

	mu   sync.Mutex
	file *os.File // nil once closed or broken
	size int
}

// newBoundedLog begins the log anew.
func newBoundedLog(path string, limit int) (*boundedLog, error) {
	if err := os.Remove(path + ".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old log: %w", err)
	}
	l := &boundedLog{path: path, limit: limit}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return l, nil
}

func (l *boundedLog) open() (err error) {
	l.file, err = os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	l.size = 0
	return err
}

// Write never fails: what writes here must not come to a halt because the
// host's disk is full. Only the tail is kept then.
func (l *boundedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for rest := p; len(rest) > 0 && l.file != nil; {
		n, err := l.file.Write(rest[:min(len(rest), l.limit-l.size)])
		l.size += n
		rest = rest[n:]
		if err == nil && l.size >= l.limit {
			err = l.rotate()
		}
		if err != nil {
			l.closeFile()
		}
	}
	return l.tail.Write(p)
}

func (l *boundedLog) rotate() error {
	l.closeFile()
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		return err
	}
	return l.open()
}

func (l *boundedLog) closeFile() {
	if l.file != nil {
		// The log is for people to read after an accident: nothing depends on it.
		_ = l.file.Close()
		l.file = nil
	}
}

// Close keeps the tail readable.
func (l *boundedLog) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closeFile()
}
