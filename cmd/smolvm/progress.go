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
	shown string
}

const eraseLine = "\r\x1b[K"

func (l *progressLine) show(p smolvm.Progress) { l.say(p.String()) }

// say shows what is being done.
func (l *progressLine) say(text string) {
	if !l.enabled {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shown = plain(text)
	fmt.Fprint(l.out, eraseLine+l.shown)
}

func (l *progressLine) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shown != "" {
		fmt.Fprint(l.out, eraseLine)
		l.shown = ""
	}
}

// writer writes lines to the same terminal, above the one that shows progress.
func (l *progressLine) writer() io.Writer { return lineWriter{l} }

type lineWriter struct{ line *progressLine }

func (w lineWriter) Write(p []byte) (int, error) {
	w.line.mu.Lock()
	defer w.line.mu.Unlock()
	if w.line.shown == "" {
		return w.line.out.Write(p)
	}
	fmt.Fprint(w.line.out, eraseLine)
	n, err := w.line.out.Write(p)
	fmt.Fprint(w.line.out, w.line.shown)
	return n, err
}
