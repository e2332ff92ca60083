package main

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode"
	"unicode/utf8"
)

func printed(t *testing.T, from io.Reader) string {
	t.Helper()
	var b strings.Builder
	if _, err := io.Copy(&printableWriter{out: &b}, from); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPrintableWriter(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"one\ntwo\tthree\n", "one\ntwo\tthree\n"},
		{"grüße 世界 🦀\n", "grüße 世界 🦀\n"},
		{"line\r\nnext\r\n", "line\nnext\n"},
		{"\x1b[0;32mgreen\x1b[0m", "green"},
		{"\x1b[?1049h\x1b[2Jgone", "gone"},
		{"\x1b]0;title\x07text", "]0;titletext"},
		{"\x1bc reset", "c reset"},
		{"\x1b[12", ""},
		{"\x1b[\nline", "\nline"},
		{"a\bb\x00c\x7fd", "abcd"},
		{"\u009b2J", "2J"},
		{"\x9b2J", "\ufffd2J"},
		{"user\u202etxt.exe", "usertxt.exe"},
	} {
		if got := printed(t, strings.NewReader(c.text)); got != c.want {
			t.Errorf("%q is shown as %q, not %q", c.text, got, c.want)
		}
		if got := printed(t, iotest.OneByteReader(strings.NewReader(c.text))); got != c.want {
			t.Errorf("%q, byte by byte, is shown as %q, not %q", c.text, got, c.want)
		}
	}
}

func FuzzPrintableWriter(f *testing.F) {
	f.Add([]byte("a\x1b[31mb\n"), 3)
	f.Add([]byte("\xf0\x9f\xa6\x80\x1b]8;;x\x07"), 1)
	f.Fuzz(func(t *testing.T, text []byte, at int) {
		var whole, parts strings.Builder
		if _, err := (&printableWriter{out: &whole}).Write(text); err != nil {
			t.Fatal(err)
		}
		at = min(max(at, 0), len(text))
		w := &printableWriter{out: &parts}
		for _, part := range [][]byte{text[:at], text[at:]} {
			if n, err := w.Write(part); err != nil || n != len(part) {
				t.Fatal(n, err)
			}
		}
		if whole.String() != parts.String() {
			t.Errorf("%q in two parts is %q, in one %q", text, parts.String(), whole.String())
		}
		if !utf8.ValidString(whole.String()) {
			t.Errorf("%q is no UTF-8", whole.String())
		}
		for _, r := range whole.String() {
			if unicode.IsControl(r) && r != '\n' && r != '\t' {
				t.Errorf("%q has %q", whole.String(), r)
			}
		}
	})
}
