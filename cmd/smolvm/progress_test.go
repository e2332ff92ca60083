package main

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/smolvm/smolvm"
)

func TestProgressLine(t *testing.T) {
	var out bytes.Buffer
	line := &progressLine{out: &out, enabled: true}
	line.clear() // nothing is there to be cleared
	fmt.Fprint(line.writer(), "first\n")
	line.show(smolvm.Progress{Stage: "download\x1b[2J", Done: 1, Total: 7})
	fmt.Fprint(line.writer(), "second\n")
	line.clear()
	fmt.Fprint(line.writer(), "third\n")
	const shown = `download\u001b[2J (2 of 7)`
	if want := "first\n" + eraseLine + shown + eraseLine + "second\n" + shown + eraseLine + "third\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	out.Reset()
	pipe := &progressLine{out: &out}
	pipe.say("quiet")
	pipe.clear()
	if out.Len() > 0 {
		t.Errorf("where nobody looks it says %q", out.String())
	}
}
