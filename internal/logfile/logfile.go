// Package logfile keeps logs that nobody watches: bounded, since a guest must not fill the
// host's disk by talking, and never in the way of who writes them.
package logfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"unicode"
)

const (
	// Limit is when a log file is usually set aside for a new one, in bytes. There are two
	// of them then: NAME and, older, NAME.1.
	Limit = 1 << 20
	// TailLimit is how much of a log's end is kept for error messages, in bytes.
	TailLimit = 16 << 10
)

// Tail is a writer that keeps the end of what is written to it. It may be used
// concurrently.
type Tail struct {
	mu   sync.Mutex
	text []byte
}

// Write implements io.Writer. It never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p[max(0, len(p)-TailLimit):]...)
	if extra := len(t.text) - TailLimit; extra > 0 {
		t.text = append(t.text[:0], t.text[extra:]...)
	}
	return len(p), nil
}

// LastLines returns at most n of the last lines, without what terminals would act on.
func (t *Tail) LastLines(n int) string {
	t.mu.Lock()
	text := string(t.text)
	t.mu.Unlock()
	return LastLines(text, n)
}

// LastLines returns at most n of the last lines of a text, without what terminals would act on.
func LastLines(text string, n int) string {
	text = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r != unicode.ReplacementChar && unicode.IsPrint(r) {
			return r
		}
		return -1
	}, text)
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// LineAfter returns the rest of the last line that has mark in it, and whether
// there is one.
func (t *Tail) LineAfter(mark string) (rest string, ok bool) {
	text := t.LastLines(TailLimit)
	i := strings.LastIndex(text, mark)
	if i < 0 {
		return "", false
	}
	rest, _, _ = strings.Cut(text[i+len(mark):], "\n")
	return strings.TrimSpace(rest), true
}

// Log is a tail that keeps more of the end in a file. Once that is full
// it becomes name.1, in place of the one before.
type Log struct {
	Tail
	path  string
	limit int

	mu   sync.Mutex
	file *os.File // nil once closed or broken
	size int
}

// New begins the log anew, in a new file, which those who follow the log see. The caller owes a
// Close.
func New(path string, limit int) (*Log, error) {
	for _, old := range []string{path + ".1", path} {
		if err := os.Remove(old); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("remove old log: %w", err)
		}
	}
	l := &Log{path: path, limit: limit}
	if err := l.open(os.O_TRUNC); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return l, nil
}

// Continue goes on with the log of a process that ended. The caller owes a Close.
func Continue(path string, limit int) (*Log, error) {
	l := &Log{path: path, limit: limit}
	if _, err := l.remember(path + ".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read old log: %w", err)
	}
	if err := l.open(0); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	size, err := l.remember(path)
	if err != nil {
		l.closeFile()
		return nil, fmt.Errorf("read log: %w", err)
	}
	l.size = int(min(size, int64(limit)))
	return l, nil
}

// remember reads the end of a log file into the tail and returns the file's size.
func (l *Log) remember(path string) (size int64, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // only read from
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(&l.Tail, io.NewSectionReader(f, max(0, info.Size()-TailLimit), TailLimit))
	return info.Size(), err
}

func (l *Log) open(flag int) (err error) {
	l.file, err = os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|flag|syscall.O_NOFOLLOW, 0o600)
	l.size = 0
	return err
}

// Write never fails: what writes here must not come to a halt because the
// host's disk is full. Only the tail is kept then.
func (l *Log) Write(p []byte) (int, error) {
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
	return l.Tail.Write(p)
}

func (l *Log) rotate() error {
	l.closeFile()
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		return err
	}
	return l.open(os.O_TRUNC)
}

func (l *Log) closeFile() {
	if l.file != nil {
		// The log is for people to read after an accident: nothing depends on it.
		_ = l.file.Close()
		l.file = nil
	}
}

// Close keeps the tail readable.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closeFile()
}
