package main

import (
	"fmt"
	"io"
	"sync"

	"github.com/smolvm/smolvm"
)

// progressLine shows progress on one line of a terminal, which is gone when the
// work is done.
type progressLine struct {
	out     io.Writer
	enabled bool

	mu    sync.Mutex
	shown bool
}

const eraseLine = "\r\x1b[K"

func (l *progressLine) show(p smolvm.Progress) {
	if !l.enabled {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.out, "%s%s", eraseLine, p)
	l.shown = true
}

func (l *progressLine) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.erase()
}

func (l *progressLine) erase() {
	if l.shown {
		fmt.Fprint(l.out, eraseLine)
		l.shown = false
	}
}

// writer writes to the same terminal without mixing with the line.
func (l *progressLine) writer() io.Writer { return lineWriter{l} }

type lineWriter struct{ line *progressLine }

func (w lineWriter) Write(p []byte) (int, error) {
	w.line.mu.Lock()
	defer w.line.mu.Unlock()
	w.line.erase()
	return w.line.out.Write(p)
}
