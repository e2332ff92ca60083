package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/smolvm/smolvm"
)

// progressLine shows progress at the bottom of a terminal, on one line or several, which are gone
// when the work is done.
type progressLine struct {
	out     io.Writer
	enabled bool

	mu    sync.Mutex
	shown []string
}

const (
	eraseLine = "\r\x1b[K"
	lineUp    = "\x1b[A"
)

// show shows how far something has come, and the layers that are fetched for it.
func (l *progressLine) show(p smolvm.Progress) {
	l.draw(progressText(p, sizeOf(l.out)))
}

// say shows what is being done.
func (l *progressLine) say(text string) { l.draw([]string{text}) }

// draw shows lines in place of what was shown before.
func (l *progressLine) draw(lines []string) {
	if !l.enabled {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.erase()
	l.shown = nil
	for _, line := range lines {
		l.shown = append(l.shown, plain(line))
	}
	fmt.Fprint(l.out, text+strings.Join(l.shown, "\r\n"))
}

// erase is what takes away what is shown.
func (l *progressLine) erase() string {
	return eraseLine + strings.Repeat(lineUp+eraseLine, max(0, len(l.shown)-1))
}

func (l *progressLine) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.shown) > 0 {
		fmt.Fprint(l.out, l.erase())
		l.shown = nil
	}
}

// writer writes lines to the same terminal, above those that show progress.
func (l *progressLine) writer() io.Writer { return lineWriter{l} }

type lineWriter struct{ line *progressLine }

func (w lineWriter) Write(p []byte) (int, error) {
	w.line.mu.Lock()
	defer w.line.mu.Unlock()
	if len(w.line.shown) == 0 {
		return w.line.out.Write(p)
	}
	fmt.Fprint(w.line.out, w.line.erase())
	n, err := w.line.out.Write(p)
	fmt.Fprint(w.line.out, strings.Join(w.line.shown, "\r\n"))
	return n, err
}

// progressText is progress on lines that fit on a terminal: what is done, and below it a line for
// each layer. If there is not room for all, those that are finished make room first.
func progressText(p smolvm.Progress, size terminalSize) []string {
	lines := []string{p.String()}
	layers := p.Layers
	room := max(0, size.rows-2)
	for len(layers) > room {
		at := max(0, slices.IndexFunc(layers, isFetched))
		layers = slices.Delete(slices.Clone(layers), at, at+1)
	}
	for _, layer := range layers {
		lines = append(lines, layerText(layer))
	}
	for i, line := range lines {
		lines[i] = size.fit(line)
	}
	return lines
}

func isFetched(l smolvm.LayerProgress) bool {
	return l.State == smolvm.LayerDone || l.State == smolvm.LayerCached
}

// layerText is the bar of a layer.
func layerText(l smolvm.LayerProgress) string {
	_, id, _ := strings.Cut(l.Digest, ":")
	done := min(l.Done, l.Total)
	if isFetched(l) {
		done = l.Total
	}
	return fmt.Sprintf("%s %s %-11s %s of %s", id[:min(shortID, len(id))], bar(done, l.Total), l.State, size(done), size(l.Total))
}
