package qemu

import (
	"bytes"
	"io"
)

// lineEnds passes on what a console says with the line ends that its guest wrote: a console
// puts a carriage return before each.
type lineEnds struct {
	to   io.Writer
	held bool // a carriage return that ended what was written last
}

func (l *lineEnds) Write(p []byte) (int, error) {
	text := p
	if l.held {
		text = append([]byte{'\r'}, p...)
	}
	l.held = len(p) > 0 && bytes.HasSuffix(text, []byte{'\r'})
	if l.held {
		text = text[:len(text)-1]
	}
	if _, err := l.to.Write(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}
