package main

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/smolvm/smolvm"
)

func TestProgressOfLayers(t *testing.T) {
	p := smolvm.Progress{Stage: "fetch", Total: 4, Bytes: 30, AllBytes: 90, Layers: []smolvm.LayerProgress{
		{Digest: "sha256:aaaaaaaaaaaaaaaa", State: smolvm.LayerDone, Total: 10},
		{Digest: "sha256:bbbbbbbbbbbbbbbb", State: smolvm.LayerDownloading, Done: 40, Total: 80},
		{Digest: "sha256:cccccccccccccccc", State: smolvm.LayerWaiting, Total: 0},
	}}
	const half = "bbbbbbbbbbbb [############............] downloading 40 B of 80 B"
	all := []string{
		"fetch (1 of 4) 33%", "aaaaaaaaaaaa [########################] done        10 B of 10 B", half,
		"cccccccccccc [........................] waiting     0 B of 0 B",
	}
	for _, c := range []struct {
		size terminalSize
		want []string
	}{
		{terminalSize{80, 24}, all},
		{terminalSize{80, 4}, []string{all[0], all[2], all[3]}}, // what is finished makes room
		{terminalSize{8, 3}, []string{"fetch (", "ccccccc"}},
		{terminalSize{80, 1}, all[:1]},
	} {
		if got := progressText(p, c.size); !slices.Equal(got, c.want) {
			t.Errorf("on %v: got %q, want %q", c.size, got, c.want)
		}
	}
	var out bytes.Buffer
	line := &progressLine{out: &out, enabled: true}
	line.draw([]string{"one", "two"})
	fmt.Fprint(line.writer(), "log\n")
	line.draw([]string{"three"})
	line.clear()
	const gone = eraseLine + lineUp + eraseLine
	if want := eraseLine + "one\r\ntwo" + gone + "log\none\r\ntwo" + gone + "three" + eraseLine; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

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
