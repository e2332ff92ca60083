package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// printJSON prints a value for programs: one line.
func printJSON(out io.Writer, value any) error { return encodeJSON(out, value, "") }

// encodeJSON prints a value. Whatever in it could change how a terminal shows the rest is
// escaped.
func encodeJSON(out io.Writer, value any, indent string) error {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", indent)
	if err := encoder.Encode(value); err != nil {
		return err
	}
	// JSON leaves some control characters as they are; they can only be within strings.
	_, err := io.WriteString(out, escape(text.String(), func(r rune) bool { return r == '\n' }, `\u%04x`))
	return err
}

// plain makes text fit for a line of a terminal: control characters, those that only change
// how the rest is shown, and what is no text at all are escaped.
func plain(text string) string {
	text = strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "; ")
	return escape(text, nil, `\u%04x`)
}

// escape replaces the runes that do not print, except those that stay.
func escape(text string, stay func(rune) bool, format string) string {
	var b strings.Builder
	for i, r := range text {
		_, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			b.WriteRune(utf8.RuneError)
		case unicode.IsPrint(r) || stay != nil && stay(r):
			b.WriteRune(r)
		case r > 0xffff:
			b.WriteRune(utf8.RuneError)
		default:
			fmt.Fprintf(&b, format, r)
		}
	}
	return b.String()
}

// jsonFlag gives a verb the flag --json.
func jsonFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("json", false, "print JSON, for programs")
}

// isTerminal tells whether a stream is a terminal.
func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// colour is a colour of a terminal; empty: its own.
type colour string

const (
	green  colour = "\x1b[32m"
	yellow colour = "\x1b[33m"
	red    colour = "\x1b[31m"
)

// paint gives text the colour.
func (c colour) paint(text string) string {
	if c == "" {
		return text
	}
	return string(c) + text + "\x1b[0m"
}

// table prints aligned columns for people. What its cells have is made fit for a terminal.
type table struct {
	out  io.Writer
	rows [][]string
	// colours, if set, chooses the colour of a cell that is no title.
	colours func(column int, text string) colour
}

func newTable(out io.Writer, columns ...string) *table {
	t := &table{out: out}
	t.row(columns...)
	return t
}

func (t *table) row(cells ...string) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = plain(cell)
	}
	t.rows = append(t.rows, row)
}

// flush prints the table. The last cell of a row may be of any length.
func (t *table) flush() error {
	var widths []int
	for _, row := range t.rows {
		for i, cell := range row[:len(row)-1] {
			for len(widths) <= i {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	const gap = 3
	var b strings.Builder
	for n, row := range t.rows {
		for i, cell := range row {
			text := cell
			if n > 0 && t.colours != nil {
				text = t.colours(i, cell).paint(cell)
			}
			b.WriteString(text)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]+gap-utf8.RuneCountInString(cell)))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(t.out, b.String())
	return err
}
