package main

import (
	"slices"
	"testing"
)

func TestSplitCommand(t *testing.T) {
	for _, c := range []struct {
		args    []string
		vm      string
		command []string
	}{
		{nil, "", nil},
		{[]string{"web"}, "web", []string{}},
		{[]string{"web", "--"}, "web", []string{}},
		{[]string{"web", "ls", "-l"}, "web", []string{"ls", "-l"}},
		{[]string{"web", "--", "ls", "--", "-l"}, "web", []string{"ls", "--", "-l"}},
	} {
		vm, command := splitCommand(c.args)
		if vm != c.vm || !slices.Equal(command, c.command) {
			t.Errorf("%q is VM %q, command %q", c.args, vm, command)
		}
	}
}

func TestExecLeavesFlagsToTheCommand(t *testing.T) {
	cmd := newExecCommand(&globals{})
	if err := cmd.ParseFlags([]string{"-i", "-e", "A=1", "web", "ls", "-t", "--user", "x"}); err != nil {
		t.Fatal(err)
	}
	if got := cmd.Flags().Args(); !slices.Equal(got, []string{"web", "ls", "-t", "--user", "x"}) {
		t.Errorf("the arguments are %q", got)
	}
	if on, err := cmd.Flags().GetBool("tty"); on || err != nil {
		t.Errorf("-t of the command was taken: %v", err)
	}
}
