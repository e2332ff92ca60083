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
	// credential is whom it runs as, and who owns the files; nil: as this program does.
	credential *syscall.Credential
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
	if err := c.give(); err != nil {
		return nil, err
	}
	child, err := r.start(program, c.argv, &syscall.ProcAttr{
		Dir:   c.dir,
		Env:   c.env,
		Files: []uintptr{stdin.Fd(), c.stdout.Fd(), c.stderr.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: c.tty, Credential: c.credential},
	})
	if err != nil {
		return nil, fmt.Errorf("start %q: %w", program, err)
	}
	return child, nil
}

// give makes the command's files its user's own: it may want to open them by name, such
// as /dev/stdout.
func (c *command) give() error {
	if c.credential == nil {
		return nil
	}
	for _, f := range []*os.File{c.stdin, c.stdout, c.stderr} {
		if f == nil {
			continue
		}
		if err := f.Chown(int(c.credential.Uid), -1); err != nil {
			return fmt.Errorf("give the command its files: %w", err)
		}
	}
	return nil
}

// refusal tells the host why something could not be done.
func refusal(err error) []byte {
	f := &guestapi.Failure{Error: err.Error()}
	for _, k := range []struct {
		is   error
		kind guestapi.Kind
	}{
		{fs.ErrNotExist, guestapi.KindNotExist},
		{fs.ErrExist, guestapi.KindExist},
		{fs.ErrPermission, guestapi.KindPermission},
		{unix.EISDIR, guestapi.KindIsDirectory},
		{unix.ENOTDIR, guestapi.KindNotDirectory},
		{unix.ENOSPC, guestapi.KindNoSpace},
	} {
		if errors.Is(err, k.is) {
			f.Kind = k.kind
			break
		}
	}
	return guestapi.Encode(f)
}
