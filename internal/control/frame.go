package control

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/machine"
)

// After a request for a command, or for files, the connection carries frames: a byte that
// tells the kind, four bytes of length, the highest first, and as many bytes.
type frameKind byte

const (
	frameInput    frameKind = 'i' // to the owner; empty: the end of the input
	frameCredit   frameKind = 'c' // from the owner: four bytes, how much more input it takes
	frameOutput   frameKind = 'o' // from the owner: standard output, or the files
	frameErrors   frameKind = 'e' // from the owner: standard error
	frameFinished frameKind = 'x' // from the owner, the last: an outcome
)

// maxFrame bounds what a frame carries, in bytes.
const maxFrame = 64 << 10

var errFrame = errors.New("the stream between smolvm's processes is damaged")

// frameWriter writes frames. Its methods may be called concurrently.
type frameWriter struct {
	mu     sync.Mutex
	to     io.Writer
	buffer []byte
}

// write writes one frame.
func (w *frameWriter) write(kind frameKind, data []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buffer = append(w.buffer[:0], byte(kind))
	w.buffer = binary.BigEndian.AppendUint32(w.buffer, uint32(len(data)))
	w.buffer = append(w.buffer, data...)
	_, err := w.to.Write(w.buffer)
	return err
}

// stream is a writer whose data become frames of one kind.
func (w *frameWriter) stream(kind frameKind) io.Writer { return frameStream{w, kind} }

type frameStream struct {
	frames *frameWriter
	kind   frameKind
}

func (s frameStream) Write(p []byte) (n int, err error) {
	for n < len(p) {
		part := p[n:min(len(p), n+maxFrame)]
		if err := s.frames.write(s.kind, part); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// grant lets the client send more input. That it may be gone is seen elsewhere.
func (w *frameWriter) grant(n int) {
	_ = w.write(frameCredit, binary.BigEndian.AppendUint32(nil, uint32(n)))
}

// finish writes the last frame.
func (w *frameWriter) finish(o outcome) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if len(data) > maxFrame {
		o.Problem.Message = o.Problem.Message[:maxFrame/4]
		if data, err = json.Marshal(o); err != nil {
			return err
		}
	}
	return w.write(frameFinished, data)
}

// readFrame reads one frame. The data are good until the next call with the same buffer. The
// error is io.EOF if the stream ends before a frame.
func readFrame(from io.Reader, buffer []byte) (frameKind, []byte, error) {
	var header [5]byte
	if _, err := io.ReadFull(from, header[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(header[1:])
	if length > maxFrame {
		return 0, nil, fmt.Errorf("%w: a frame of %d bytes", errFrame, length)
	}
	data := buffer[:length]
	if _, err := io.ReadFull(from, data); err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errFrame, io.ErrUnexpectedEOF)
	}
	return frameKind(header[0]), data, nil
}

// outcome is how a command, or the copying of files, ended.
type outcome struct {
	Code    int      `json:"code,omitempty"`
	Signal  string   `json:"signal,omitempty"`
	Problem *problem `json:"problem,omitempty"`
}

// newOutcome packs how it ended.
func newOutcome(err error) outcome {
	var exit *machine.ExitError
	switch {
	case err == nil:
		return outcome{}
	case errors.As(err, &exit):
		return outcome{Code: exit.Status().Code, Signal: exit.Status().Signal}
	}
	return outcome{Problem: newProblem(err)}
}

// err unpacks it.
func (o outcome) err() error {
	switch {
	case o.Problem != nil:
		return o.Problem.err()
	case o.Code != 0 || o.Signal != "":
		return machine.NewExitError(guestapi.ExitStatus{Code: o.Code, Signal: o.Signal})
	}
	return nil
}
