package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// command is a process to be started.
type command struct {
	program string   // found in PATH if it has no slash
	argv    []string // argv[0] may differ from program: login shells
	dir     string
	env     []string
	stdin   *os.File // nil: /dev/null
	stdout  *os.File
	stderr  *os.File
	tty     bool // stdin is its controlling terminal
}

// start starts the command in a session and process group of its own. It takes
// no ownership of the files; their descriptors become blocking, as commands expect.
func (c *command) start(r *Reaper) (*child, error) {
	info, err := os.Stat(c.dir)
	switch {
	case err != nil:
		return nil, fmt.Errorf("change to directory: %w", err)
	case !info.IsDir():
		return nil, fmt.Errorf("change to directory: %w", &fs.PathError{Op: "chdir", Path: c.dir, Err: unix.ENOTDIR})
	}
	program, err := lookPath(c.program, getenv(c.env, "PATH"), c.dir)
	if err != nil {
		return nil, fmt.Errorf("find program %q: %w", c.program, err)
	}
	stdin := c.stdin
	if stdin == nil {
		if stdin, err = os.Open(os.DevNull); err != nil {
			return nil, fmt.Errorf("open standard input: %w", err)
		}
		defer stdin.Close()
	}
	child, err := r.start(program, c.argv, &syscall.ProcAttr{
		Dir:   c.dir,
		Env:   c.env,
		Files: []uintptr{stdin.Fd(), c.stdout.Fd(), c.stderr.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: c.tty},
	})
	if err != nil {
		return nil, fmt.Errorf("start %q: %w", program, err)
	}
	return child, nil
}

// failure tells the host why something could not be done.
func failure(err error) guestapi.Failure {
	f := guestapi.Failure{Error: err.Error()}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.Kind = guestapi.KindNotExist
	case errors.Is(err, fs.ErrPermission):
		f.Kind = guestapi.KindPermission
	}
	return f
}
