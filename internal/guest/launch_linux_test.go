package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLaunch(t *testing.T) { runHelper(t, "launch") }

// A command that is started by way of the launcher is what it would be without, and so is the error.
func helpLaunch() error {
	dir, err := os.MkdirTemp("", "launch")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte("no program"), 0o755); err != nil {
		return err
	}
	said := make(map[int32]string)
	for _, detours := range []int32{0, 1} {
		r := NewReaper()
		r.detours.Store(detours)
		said[detours], err = tryCommands(r, dir, garbage)
		r.Close()
		if err != nil {
			return fmt.Errorf("detours %d: %w", detours, err)
		}
	}
	if said[0] != said[1] {
		return fmt.Errorf("%q became %q", said[0], said[1])
	}
	return nil
}

func tryCommands(r *Reaper, dir, garbage string) (string, error) {
	from, to, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer from.Close()
	// Nothing of the launcher is left: no file, and no limit of its own.
	line := "pwd; echo $0 $1 $A; ls -l /proc/self/fd | wc -l; ulimit -n; exit 7"
	cmd := command{
		program: "sh", argv: []string{"name", "-c", line, "zero", "one"}, env: []string{"PATH=" + defaultPath, "A=b"}, dir: dir,
		stdout: to, stderr: to,
	}
	c, err := cmd.start(r)
	to.Close()
	if err != nil {
		return "", err
	}
	said, err := io.ReadAll(from)
	if err != nil {
		return "", err
	}
	if <-c.done; c.status.ExitStatus() != 7 {
		return "", fmt.Errorf("it ended with %v", c.status)
	}
	if want := dir + "\nzero one b\n"; !bytes.HasPrefix(said, []byte(want)) {
		return "", fmt.Errorf("it says %q", said)
	}
	cmd.stdout, cmd.stderr = os.Stderr, os.Stderr
	cmd.program = garbage
	if _, err := cmd.start(r); !errors.Is(err, unix.ENOEXEC) {
		return "", fmt.Errorf("garbage: %w", err)
	}
	return string(said), nil
}
