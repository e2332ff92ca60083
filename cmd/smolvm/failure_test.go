package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// TestComplaint wants one line of what, why and what to do.
func TestComplaint(t *testing.T) {
	dataDir(t, "web", "database")
	g := &globals{}
	verb := func(use string, args ...string) *cobra.Command {
		cmd := &cobra.Command{Use: use}
		if err := cmd.ParseFlags(args); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	stopped := &smolvm.NotRunningError{Op: "run command", Status: smolvm.StatusStopped}
	for _, c := range []struct {
		cmd  *cobra.Command
		err  error
		want string
	}{
		{verb("exec [flags] VM COMMAND", "web"), stopped, "cannot run command: VM web is stopped; start it with: smolvm start web"},
		{verb("cp SRC DST", "web:a", "b"), stopped, "cannot run command: VM is stopped; start it with: smolvm start VM"},
		{
			verb("pause VM...", "a", "b"), &vmError{"b", &smolvm.NotRunningError{Op: "pause VM", Status: smolvm.StatusCreated}},
			"cannot pause VM: VM b is stopped; start it with: smolvm start b",
		},
		{
			verb("exec VM", "web"), &smolvm.NotRunningError{Op: "run command", Status: smolvm.StatusPaused},
			"cannot run command: VM web is paused; let it go on with: smolvm resume web",
		},
		{verb("cp SRC DST", "a", "databsae:/x"), fmt.Errorf("%w: %q", smolvm.ErrNotFound, "databsae"), `VM not found: "databsae"; did you mean database?`},
		{verb("stop VM...", "q"), fmt.Errorf("%w: %q", smolvm.ErrNotFound, "q"), `VM not found: "q"; see what there is with: smolvm ls`},
		{verb("stop VM...", "a"), &vmError{"a", errors.New("QEMU ended at once")}, "VM a: QEMU ended at once"},
		{verb("stop VM...", "web"), &vmError{"web", errors.New("VM web-2 is odd")}, "VM web: VM web-2 is odd"},
		{
			verb("start VM..."), fmt.Errorf("%w: /x/record.json", smolvm.ErrDamaged),
			"VM record is damaged: /x/record.json; all that can be done is to remove it with: smolvm rm --force VM",
		},
		{verb("create"), fmt.Errorf("%w: %q", smolvm.ErrExists, "web"), `VM already exists: "web"; choose another name, or see what there is with: smolvm ls`},
		{verb("run"), fmt.Errorf("write: %w", syscall.ENOSPC), "write: no space left on device; see what can be removed with: smolvm prune --dry-run"},
		{verb("run"), fmt.Errorf("%w: %q", smolvm.ErrImageNotFound, "x"), `image not found: "x"; see what there is with: smolvm images`},
		{verb("run"), &smolvm.PortInUseError{Port: 80, Holder: "nginx, pid 1"}, "host port 80 is in use by nginx, pid 1; choose another host port, or leave the choice to smolvm"},
		{verb("ls"), errors.New("of\nno \x1b[31mkind"), `of; no \u001b[31mkind`},
		{verb("ls"), fmt.Errorf("list: %w", context.Canceled), "interrupted"},
	} {
		if got := g.complaint(c.cmd, c.err); got != c.want {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}

func TestAlso(t *testing.T) {
	a, b, c := errors.New("a"), errors.New("b"), errors.New("c")
	for _, err := range []error{also(a, nil), also(nil, a)} {
		if err != a {
			t.Errorf("of one error: %v", err)
		}
	}
	if several, ok := errors.AsType[failures](also(also(a, b), c)); !ok || len(several) != 3 {
		t.Errorf("of three: %v", several)
	}
	if also(nil, nil) != nil {
		t.Error("of none there is one")
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	failure := errors.New("it failed")
	if err := interrupted(ctx, context.Canceled, "undone"); err != context.Canceled {
		t.Errorf("before the end: %v", err)
	}
	cancel()
	if err := interrupted(ctx, fmt.Errorf("x: %w", context.Canceled), "%s was undone", "all"); err == nil || err.Error() != "interrupted: all was undone" {
		t.Errorf("after the end: %v", err)
	}
	if err := interrupted(ctx, failure, "undone"); err != failure {
		t.Errorf("another failure: %v", err)
	}
	if err := interrupted(ctx, nil, "undone"); err != nil {
		t.Errorf("no failure: %v", err)
	}
}
