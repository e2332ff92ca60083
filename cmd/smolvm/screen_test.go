package main

import "testing"

func TestFrame(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"one\ntwo\n", "\x1b[Hone\x1b[K\r\ntwo\x1b[K\x1b[J"},
		{"grüße an alle\n", "\x1b[Hgrüße an a\x1b[K\x1b[J"},
		{"1\n2\n3\n", "\x1b[H1\x1b[K\r\n2\x1b[K\r\n3\x1b[K\x1b[J"},
		{"1\n2\n3\n4\n5\n", "\x1b[H1\x1b[K\r\n2\x1b[K\r\n(and 3 mor\x1b[K\x1b[J"},
	} {
		if got := frame(c.text, terminalSize{10, 3}); got != c.want {
			t.Errorf("%q is shown as %q, not %q", c.text, got, c.want)
		}
	}
}
