package main

import (
	"fmt"
	"os"
	"strings"
)

// screen shows text that changes on the whole of a terminal, which shows what it did
// before once it is closed.
type screen struct{ tty *os.File }

func openScreen(tty *os.File) *screen {
	// The alternate screen, without a cursor.
	fmt.Fprint(tty, "\x1b[?1049h\x1b[?25l")
	return &screen{tty}
}

func (s *screen) close() { fmt.Fprint(s.tty, "\x1b[?25h\x1b[?1049l") }

// draw shows lines of text in place of what was shown before.
func (s *screen) draw(text string) error {
	_, err := s.tty.WriteString(frame(text, sizeOf(s.tty)))
	return err
}

// frame is what a terminal is sent to show as much of the text as it has room for.
func frame(text string, size terminalSize) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if more := len(lines) - size.rows; more > 0 {
		lines = append(lines[:size.rows-1], fmt.Sprintf("(and %d more)", more+1))
	}
	for i, line := range lines {
		lines[i] = cut(line, size.columns) + "\x1b[K"
	}
	return "\x1b[H" + strings.Join(lines, "\r\n") + "\x1b[J"
}

// cut returns the beginning of a line that fits into so many columns.
func cut(line string, columns int) string {
	for at := range line {
		if columns == 0 {
			return line[:at]
		}
		columns--
	}
	return line
}
