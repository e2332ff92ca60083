package control

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"sync"

	"github.com/smolvm/smolvm/internal/image"
)

// report is one thing that a background owner tells who started it, until it is up. The last
// one is Ready or a Problem.
type report struct {
	Ready    bool            `json:"ready,omitempty"`
	Problem  *problem        `json:"problem,omitempty"`
	Progress *image.Progress `json:"progress,omitempty"`
	Log      *logRecord      `json:"log,omitempty"`
}

// logRecord is a line of the owner's log.
type logRecord struct {
	Level   slog.Level  `json:"level"`
	Message string      `json:"msg"`
	Attrs   []attribute `json:"attrs,omitempty"`
}

type attribute struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// emit says the line in another process's log.
func (r *logRecord) emit(log *slog.Logger) {
	attrs := make([]slog.Attr, len(r.Attrs))
	for i, a := range r.Attrs {
		attrs[i] = slog.String(a.Key, a.Value)
	}
	log.LogAttrs(context.Background(), r.Level, r.Message, attrs...)
}

// reporter writes reports, as long as somebody wants them.
type reporter struct {
	mu   sync.Mutex
	file *os.File // nil: nobody wants them any more
}

func newReporter(file *os.File) *reporter { return &reporter{file: file} }

func (r *reporter) send(what report) {
	data, err := json.Marshal(what)
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return
	}
	if _, err := r.file.Write(append(data, '\n')); err != nil {
		r.close()
	}
}

// close ends the reports. The caller holds r.mu.
func (r *reporter) close() {
	_ = r.file.Close() // who read it is gone, or knows all it wants to know
	r.file = nil
}

func (r *reporter) progress(p image.Progress) { r.send(report{Progress: &p}) }

// ready is the last report of an owner that is up.
func (r *reporter) ready() {
	r.send(report{Ready: true})
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file != nil {
		r.close()
	}
}

// end is the last report of one that is not.
func (r *reporter) end(err error) {
	if err != nil {
		r.send(report{Problem: newProblem(err)})
	}
}

// handler is a log handler that reports what it hands on to another one.
func (r *reporter) handler(next slog.Handler) slog.Handler { return reportHandler{r, next, nil} }

type reportHandler struct {
	to    *reporter
	next  slog.Handler
	attrs []slog.Attr
}

func (h reportHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

func (h reportHandler) Handle(ctx context.Context, r slog.Record) error {
	line := &logRecord{Level: r.Level, Message: r.Message}
	add := func(a slog.Attr) bool {
		line.Attrs = append(line.Attrs, attribute{a.Key, a.Value.String()})
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	h.to.send(report{Log: line})
	return h.next.Handle(ctx, r)
}

func (h reportHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return reportHandler{h.to, h.next.WithAttrs(attrs), append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

// WithGroup is not used by this program's log: groups are not reported.
func (h reportHandler) WithGroup(name string) slog.Handler {
	return reportHandler{h.to, h.next.WithGroup(name), h.attrs}
}
