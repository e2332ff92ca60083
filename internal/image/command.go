package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// command is a program to run for a build.
type command struct {
	name string
	args []string
	dir  string   // where it runs; default: the job's directory
	env  []string // on top of this process's own
	// chroot is where the program takes its root directory to be. It needs root, or
	// else the program runs as root of a user namespace with the caller as its only user.
	chroot string
	// isolated programs see only their own processes, and nobody else sees their mounts.
	// When the program ends, so does all that it started. It needs root.
	isolated bool
	// files are open in the program, as fileOf says. If unprivileged is set that is all of this host
	// that it can do harm to: where this process is root's, it runs as nobody, in no directory of
	// the job's. It is for what reads what anybody wrote.
	files        []*os.File
	unprivileged bool
	// line is called with each line on stderr, if it is not nil.
	line func(string)
}

const (
	// killDelay is how long a program may take to clean up when it is asked to end.
	killDelay = 10 * time.Second
	// tailLines is how many of a failed program's last lines its error shows.
	tailLines = 12
	// maxLine cuts lines in an error: some programs write their whole command line.
	maxLine = 300
)

// nobody is the user, and the group, that own nothing.
const nobody = 65534

// fileOf is the path under which a program finds the file of that number among its own.
func fileOf(number int) string {
	const first = 4 // behind the usual ones, and the lock
	return fmt.Sprintf("/proc/self/fd/%d", first+number)
}

// run runs a program and returns what it wrote to stdout. It fails with the last
// lines of stderr. When ctx ends, or this process does, the program and its
// children are ended.
func (j *Job) run(ctx context.Context, c command) ([]byte, error) {
	cmd := exec.CommandContext(ctx, c.name, c.args...)
	cmd.Dir = c.dir
	if cmd.Dir == "" {
		cmd.Dir = j.Dir
	}
	cmd.Env = append(append(os.Environ(), "LC_ALL=C.UTF-8", "PATH="+toolPath()), c.env...)
	cmd.ExtraFiles = append([]*os.File{j.lock}, c.files...)
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM, Chroot: c.chroot}
	cmd.SysProcAttr = attr
	if c.unprivileged {
		cmd.Dir = "/"
		if os.Geteuid() == 0 {
			attr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		}
	}
	if c.chroot != "" {
		cmd.Dir = "/"
		if os.Geteuid() != 0 {
			becomeRoot(attr)
		}
	}
	var killer *time.Timer
	if c.isolated {
		// The first process of a PID namespace takes all others with it, and the mounts
		// go with the last process of their namespace.
		attr.Cloneflags |= syscall.CLONE_NEWPID
		attr.Unshareflags |= syscall.CLONE_NEWNS
		attr.Pdeathsig = syscall.SIGKILL
	} else {
		cmd.Cancel = func() error {
			group := -cmd.Process.Pid
			killer = time.AfterFunc(killDelay, func() { _ = syscall.Kill(group, syscall.SIGKILL) })
			return syscall.Kill(group, syscall.SIGTERM)
		}
	}
	cmd.WaitDelay = killDelay + time.Second
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	stderr, tail := newLineWriter(c.line)
	cmd.Stderr = stderr
	j.Log.Debug("run program", "program", c.name, "args", c.args)
	err := startAndWait(cmd)
	if killer != nil {
		killer.Stop()
	}
	stderr.finish()
	name := filepath.Base(c.name)
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("run %s: %w", name, ended(ctx))
	case err != nil && len(*tail) > 0:
		return nil, fmt.Errorf("run %s: %w:\n\t%s", name, err, strings.Join(*tail, "\n\t"))
	case err != nil:
		return nil, fmt.Errorf("run %s: %w", name, err)
	}
	return stdout.Bytes(), nil
}

// ended returns why ctx ended, as an error that wraps ctx.Err() too.
func ended(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, ctx.Err()) {
		return fmt.Errorf("%w: %w", ctx.Err(), cause)
	}
	return ctx.Err()
}

// startAndWait runs cmd from a thread that lives as long as the program does: the
// signal at the parent's death is sent when the thread that started it ends.
func startAndWait(cmd *exec.Cmd) error {
	ended := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		ended <- cmd.Run()
	}()
	return <-ended
}

// becomeRoot puts the program into a user namespace where the caller is root.
func becomeRoot(attr *syscall.SysProcAttr) {
	attr.Cloneflags |= syscall.CLONE_NEWUSER
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
}

// lineWriter cuts what is written to it into lines and remembers the last ones.
type lineWriter struct {
	partial []byte
	tail    *[]string
	line    func(string)
}

var _ io.Writer = (*lineWriter)(nil)

func newLineWriter(line func(string)) (w *lineWriter, tail *[]string) {
	tail = new([]string)
	return &lineWriter{tail: tail, line: line}, tail
}

// Write never fails.
func (w *lineWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		advance, token, _ := bufio.ScanLines(rest, false)
		if advance == 0 {
			w.add(rest)
			break
		}
		w.add(token)
		w.finish()
		rest = rest[advance:]
	}
	return len(p), nil
}

// add adds to the line, as far as it is kept.
func (w *lineWriter) add(p []byte) {
	w.partial = append(w.partial, p[:min(len(p), maxLine-len(w.partial))]...)
}

// finish ends a line.
func (w *lineWriter) finish() {
	line := strings.ToValidUTF8(strings.TrimSpace(string(w.partial)), "")
	w.partial = w.partial[:0]
	if line == "" {
		return
	}
	*w.tail = append(*w.tail, line)
	if extra := len(*w.tail) - tailLines; extra > 0 {
		*w.tail = (*w.tail)[extra:]
	}
	if w.line != nil {
		w.line(line)
	}
}

// toolPath is where programs are looked for: for users, whose PATH often lacks them,
// the directories of system programs too.
func toolPath() string {
	return os.Getenv("PATH") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
}

// tool is a program and the Debian package that has it.
type tool struct{ program, pkg string }

// findTools returns the paths of the programs. If some are missing it fails with one
// error that names them all and the packages to install.
func findTools(tools ...tool) (map[string]string, error) {
	paths := map[string]string{}
	var programs, packages []string
	for _, t := range tools {
		path, err := findTool(t.program)
		if err != nil {
			programs = append(programs, t.program)
			packages = append(packages, t.pkg)
			continue
		}
		paths[t.program] = path
	}
	if len(programs) > 0 {
		return nil, fmt.Errorf("%w: missing programs: %s; run: sudo apt-get install %s",
			ErrHost, strings.Join(programs, ", "), strings.Join(packages, " "))
	}
	return paths, nil
}

func findTool(program string) (string, error) {
	for _, dir := range filepath.SplitList(toolPath()) {
		path := filepath.Join(dir, program)
		info, err := os.Stat(path)
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 && filepath.IsAbs(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s: %w", program, errors.Join(exec.ErrNotFound))
}
