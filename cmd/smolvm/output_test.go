package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestPlain(t *testing.T) {
	for text, want := range map[string]string{
		"as it is, ä 漢":       "as it is, ä 漢",
		"two\nlines\n":        "two; lines",
		"\x1b]0;title\x07":    `\u001b]0;title\u0007`,
		"\x9b2J":              "\ufffd2J", // no UTF-8, but a control sequence to some terminals
		"\u009b2J":            `\u009b2J`,
		"ab\rcd\te":           `ab\u000dcd\u0009e`,
		"exe\u202efdp":        `exe\u202efdp`,
		"\U000e0001language":  "\ufffdlanguage",
		"a\u00a0non-breaking": `a\u00a0non-breaking`,
	} {
		if got := plain(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func FuzzOutput(f *testing.F) {
	f.Add("\x1b[2J\u009b1m\x00\x7f\xff\u2028")
	f.Fuzz(func(t *testing.T, text string) {
		if got := plain(text); strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("a terminal would get %q", got)
		}
		var out bytes.Buffer
		if err := encodeJSON(&out, map[string]string{"text": text}, "  "); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsFunc(out.String(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
			t.Errorf("a terminal would get %q", out.String())
		}
		var back struct{ Text string }
		if err := json.Unmarshal(out.Bytes(), &back); err != nil {
			t.Fatalf("%v: %q", err, out.String())
		}
		// What is escaped is still what it was, except what is too rare for JSON's short form.
		rare := func(r rune) bool { return r > 0xffff && !unicode.IsPrint(r) }
		if utf8.ValidString(text) && !strings.ContainsFunc(text, rare) && back.Text != text {
			t.Errorf("%q came back as %q", text, back.Text)
		}
	})
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	table := newTable(&out, "NAME", "STATUS", "PORTS")
	table.row("wéb", "running", "80")
	table.row("a\x1b[31m", "damaged", "")
	table.row("short")
	want := "NAME          STATUS    PORTS\n" +
		"wéb           running   80\n" +
		"a\\u001b[31m   damaged   \n" +
		"short\n"
	if err := table.flush(); err != nil || out.String() != want {
		t.Errorf("got:\n%swant:\n%s", out.String(), want)
	}
	// Colours take no room.
	out.Reset()
	table = newTable(&out, "A", "B")
	table.colours = func(column int, text string) colour {
		if text == "bad" {
			return red
		}
		return ""
	}
	table.row("bad", "x")
	table.row("good", "y")
	if err := table.flush(); err != nil || out.String() != "A      B\n\x1b[31mbad\x1b[0m    x\ngood   y\n" {
		t.Errorf("got %q", out.String())
	}
}
