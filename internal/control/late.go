package control

import (
	"io"
	"sync"
)

// lateWriter makes frames for a connection that is not there yet: who writes waits for it.
type lateWriter struct {
	ready  chan struct{}
	once   sync.Once
	frames *frameWriter
	err    error
}

func newLateWriter() *lateWriter { return &lateWriter{ready: make(chan struct{})} }

// begin lets those who wait write to conn.
func (l *lateWriter) begin(conn io.Writer) *frameWriter {
	l.once.Do(func() {
		l.frames = &frameWriter{to: conn}
		close(l.ready)
	})
	return l.frames
}

// fail lets those who wait fail.
func (l *lateWriter) fail(err error) {
	l.once.Do(func() {
		l.err = err
		close(l.ready)
	})
}

// grant is frameWriter.grant.
func (l *lateWriter) grant(n int) {
	<-l.ready
	if l.err == nil {
		l.frames.grant(n)
	}
}

// stream is a writer of frames of one kind.
func (l *lateWriter) stream(kind frameKind) io.Writer { return lateStream{l, kind} }

type lateStream struct {
	late *lateWriter
	kind frameKind
}

func (s lateStream) Write(p []byte) (int, error) {
	<-s.late.ready
	if s.late.err != nil {
		return 0, s.late.err
	}
	return s.late.frames.stream(s.kind).Write(p)
}
