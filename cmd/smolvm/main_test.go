package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/network/nettest"
	"github.com/smolvm/smolvm/internal/store"
)

// TestMain runs the tests where no rule or interface is the machine's own.
func TestMain(m *testing.M) { nettest.Main(m.Run) }

// invocation is what a command line came to.
type invocation struct {
	stdout, stderr string
	code           int
}

// invoke runs a command line in this process. What it would say to people is all there is in
// stderr: the log is not.
func invoke(t testing.TB, args ...string) invocation {
	t.Helper()
	t.Setenv("SMOLVM_CONFIG", filepath.Join(t.TempDir(), "none.toml"))
	return invokeAsIs(t, args...)
}

// invokeAsIs is invoke with the configuration file of the environment.
func invokeAsIs(t testing.TB, args ...string) invocation {
	t.Helper()
	g := &globals{}
	root := newRootCommand(g)
	var stdout bytes.Buffer
	root.SetOut(&stdout)
	root.SetErr(io.Discard)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(t.Context())
	said, openErr := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if openErr != nil {
		t.Fatal(openErr)
	}
	code := g.report(said, cmd, err, 0)
	stderr, readErr := os.ReadFile(said.Name())
	if err := errors.Join(said.Close(), readErr); err != nil {
		t.Fatal(err)
	}
	return invocation{stdout.String(), string(stderr), code}
}

// dataDir makes a data directory with VMs of those names, which were never started, and lets
// this process use it.
func dataDir(t testing.TB, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("SMOLVM_DATA_DIR", dir)
	s, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		claim, err := s.Create(t.Context(), store.Record{
			Name: name, Created: time.Now().UTC(),
			Design: store.Design{Image: "debian", ImageID: "0123", MemoryMiB: 512, CPUs: 1, Network: "none"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := claim.Release(); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestExitCodes(t *testing.T) {
	dataDir(t, "web")
	for _, c := range []struct {
		args   string
		code   int
		stderr string // the one line that it must be
	}{
		{"ls", 0, ""},
		{"docter", exitUsage, `smolvm: there is no verb "docter": did you mean doctor?; see: smolvm --help`},
		{"xyzzy", exitUsage, `smolvm: there is no verb "xyzzy"; see: smolvm --help`},
		{"ls --jsn", exitUsage, `smolvm: unknown flag: --jsn; see: smolvm ls --help`},
		{"ls web", exitUsage, `smolvm: "web" is too much: smolvm ls; see: smolvm ls --help`},
		{"rename web", exitUsage, `smolvm: NAME is missing: smolvm rename VM NAME; see: smolvm rename --help`},
		{"stop", exitUsage, `smolvm: VM is missing: smolvm stop VM...; see: smolvm stop --help`},
		{"stop --all web", exitUsage, `smolvm: give either names or --all; see: smolvm stop --help`},
		{"create --network wifi", exitUsage, `smolvm: --network must be auto, nat, user or none, not "wifi"; see: smolvm create --help`},
		{"create --memory x", exitUsage, `smolvm: --memory must be a whole number, not "x"; see: smolvm create --help`},
		{"create --memory 0", exitUsage, `smolvm: --memory must be at least 1, not 0; see: smolvm create --help`},
		{"create --disk -1", exitUsage, `smolvm: --disk must be at least 0, not -1; see: smolvm create --help`},
		{"run --rm=maybe -- true", exitFailure, `smolvm: --rm must be true or false, not "maybe"; see: smolvm run --help`},
		{"config pth", exitUsage, `smolvm: there is no verb "pth" of smolvm config: did you mean path?; see: smolvm config --help`},
		{"help strat", exitUsage, `smolvm: there is no verb "strat": did you mean start?; see: smolvm --help`},
		{"completion tcsh", exitUsage, `smolvm: SHELL must be bash, zsh or fish, not "tcsh"; see: smolvm completion --help`},
		{"top --interval 1ms", exitUsage, `smolvm: --interval must be at least 100ms; see: smolvm top --help`},
		{"stop wbe", exitFailed, `smolvm: VM not found: "wbe"; did you mean web?`},
		{"inspect x", exitFailed, `smolvm: VM not found: "x"; see what there is with: smolvm ls`},
		{"pause web", exitFailed, `smolvm: cannot pause VM: VM web is stopped; start it with: smolvm start web`},
		{"rename web WEB", exitUsage, `smolvm: cannot rename VM: invalid VM name "WEB": use lower-case letters, digits and, between them, hyphens`},
		{"run a b", exitFailure, `smolvm: run takes one image; put the command behind --, as in: smolvm run a -- b; see: smolvm run --help`},
		{"run -dt -- sh", exitFailure, `smolvm: --detach and --tty cannot go together; see: smolvm run --help`},
		{"run --image a b", exitFailure, `smolvm: the image is given twice: --image a and b; see: smolvm run --help`},
		{"run -p 0", exitFailure, `smolvm: port "0": guest_port must be 1-65535`},
	} {
		t.Run(c.args, func(t *testing.T) {
			got := invoke(t, strings.Fields(c.args)...)
			if want := strings.TrimSpace(c.stderr + "\n"); got.code != c.code || strings.TrimSpace(got.stderr) != want || strings.Count(got.stderr, "\n") > 1 {
				t.Errorf("exit code %d, %q; want %d, %q", got.code, got.stderr, c.code, want)
			}
		})
	}
}

// TestReportOfSeveral wants a line for each VM, and the signal in the exit code.
func TestReportOfSeveral(t *testing.T) {
	said, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	g := &globals{}
	cmd, _, err := newRootCommand(g).Find([]string{"stop"})
	if err != nil {
		t.Fatal(err)
	}
	several := failures{
		&vmError{"a", &interruption{"VM a is running"}}, &vmError{"b", errors.New("no\nluck\x1b[2J")}, &vmError{"c", context.Canceled},
	}
	if code := g.report(said, cmd, several, 2); code != 130 {
		t.Errorf("exit code %d", code)
	}
	text, _ := os.ReadFile(said.Name())
	want := "smolvm: interrupted: VM a is running\nsmolvm: VM b: no; luck\\u001b[2J\nsmolvm: interrupted\n"
	if string(text) != want {
		t.Errorf("got %q, want %q", text, want)
	}
	// A command's own exit code stands, whatever else happened.
	if code := g.report(said, cmd, exitStatus(7), 2); code != 7 {
		t.Errorf("exit code %d", code)
	}
}
