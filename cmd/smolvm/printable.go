package main

import (
	"io"
	"unicode"
	"unicode/utf8"
)

// What comes from a guest may hold sequences that make a terminal do things: rename its
// window, answer as if somebody typed, hide what was printed before. People see it without.

// printableWriter passes lines of text on without control characters; tabs stay. What is no
// UTF-8 becomes U+FFFD, for some terminals take single bytes from 0x80 to 0x9f as controls.
type printableWriter struct {
	out   io.Writer
	state printableState
	part  []byte // of a rune whose rest has not come yet
}

// printableState is where in a sequence for terminals the text is.
type printableState int

const (
	inText     printableState = iota
	inEscape                  // after ESC
	inSequence                // after ESC [, until a letter or such
)

func (w *printableWriter) Write(p []byte) (int, error) {
	data := append(w.part, p...)
	w.part = nil
	clean := make([]byte, 0, len(data))
	for len(data) > 0 {
		if !utf8.FullRune(data) {
			w.part = data
			break
		}
		r, size := utf8.DecodeRune(data)
		data = data[size:]
		if w.keep(r) {
			clean = utf8.AppendRune(clean, r)
		}
	}
	if _, err := w.out.Write(clean); err != nil {
		return 0, err
	}
	return len(p), nil
}

// keep tells whether the next rune of the text is to be seen.
func (w *printableWriter) keep(r rune) bool {
	switch {
	case r == '\x1b':
		w.state = inEscape
		return false
	case w.state == inEscape && r == '[':
		w.state = inSequence
		return false
	case w.state == inSequence && ' ' <= r && r <= '?':
		return false
	case w.state == inSequence && '@' <= r && r <= '~':
		w.state = inText
		return false
	}
	w.state = inText
	// Those that turn the direction of writing hide what a line says.
	return r == '\n' || r == '\t' || !unicode.IsControl(r) && !unicode.Is(unicode.Bidi_Control, r)
}

// forPeople is a writer to out that is safe if people see it at a terminal. Programs get all
// bytes as they are.
func forPeople(out io.Writer) io.Writer {
	if isTerminal(out) {
		return &printableWriter{out: out}
	}
	return out
}
