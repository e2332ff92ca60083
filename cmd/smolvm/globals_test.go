package main

import (
	"os"
	"testing"
)

func TestColored(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	pipe, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer other.Close()
	for _, c := range []struct {
		color, noColor, term string
		onTerminal, onPipe   bool
	}{
		{"auto", "", "xterm", true, false},
		{"auto", "1", "xterm", false, false},
		{"auto", "", "dumb", false, false},
		{"always", "1", "dumb", true, true},
		{"never", "", "xterm", false, false},
	} {
		t.Setenv("NO_COLOR", c.noColor)
		t.Setenv("TERM", c.term)
		g := &globals{color: c.color}
		if got, gotPipe := g.colored(terminal), g.colored(pipe); got != c.onTerminal || gotPipe != c.onPipe {
			t.Errorf("%+v: %v on a terminal, %v in a pipe", c, got, gotPipe)
		}
	}
}

// TestForPrograms wants it to be known that a verb prints for programs, with no progress beside.
func TestForPrograms(t *testing.T) {
	g := &globals{}
	cmd, args, err := newRootCommand(g).Find([]string{"config", "--json"})
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	configured(t, "")
	if err := g.settle(cmd); err != nil || !g.json {
		t.Errorf("%v, %+v", err, g)
	}
}
