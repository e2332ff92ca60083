package nettest

import (
	"bytes"
	"strings"
	"sync"
)

// Log is a log that may be read while it is written. Its zero value is ready.
type Log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// Count tells how often something was said.
func (l *Log) Count(what string) int { return strings.Count(l.String(), what) }

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
