package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// dialogue FILE ARG... runs smolvm at a pseudo-terminal of 100x30, used as the lines of the file
// say:
//
//	see REGEXP    wait until the terminal shows it, after what was seen before
//	type TEXT     type a line
//	press X       press Ctrl and that key
//	size 120x40   give the terminal another size
//	exit CODE     wait for the end of smolvm, which must have that exit code
func dialogue(ts *testscript.TestScript, _ bool, args []string) {
	cmd := exec.Command(smolvmPath, args[1:]...)
	cmd.Dir = ts.Getenv("WORK")
	for _, name := range []string{"PATH", "HOME", "SMOLVM_DATA_DIR", "TERM"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	tty, err := startAtTerminal(cmd)
	ts.Check(err)
	ended := false
	defer func() {
		if !ended {
			ts.Logf("the terminal shows %q", tty.text())
			_ = cmd.Process.Kill() // it may have ended
			_ = cmd.Wait()         // which tells that it was killed
		}
		ts.Check(tty.master.Close())
	}()
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		verb, what, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
		switch verb {
		case "see":
			pattern := regexp.MustCompile("(?m)" + what)
			until(ts, func() error { return tty.see(pattern) })
		case "type":
			ts.Check(tty.press(what + "\r"))
		case "press":
			ts.Check(tty.press(string(rune(what[0] & 0x1f))))
		case "size":
			ts.Check(tty.resize(what))
		case "exit":
			until(ts, func() error { return tty.hasEnded() })
			_ = cmd.Wait() // the exit code says it all
			ended = true
			if code := strconv.Itoa(cmd.ProcessState.ExitCode()); code != what {
				ts.Fatalf("exit code %s, want %s; the terminal shows %q", code, what, tty.text())
			}
		case "":
		default:
			ts.Fatalf("a dialogue has no %q", verb)
		}
	}
	if !ended {
		ts.Fatalf("a dialogue ends with exit")
	}
}

// terminal is a pseudo-terminal at which a program runs.
type terminal struct {
	master *os.File

	mu    sync.Mutex
	shown strings.Builder
	seen  int   // how much of it counts no more
	end   error // why it shows no more
}

// startAtTerminal starts a program at a terminal of its own.
func startAtTerminal(cmd *exec.Cmd) (*terminal, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t := &terminal{master: master}
	var number uint32
	err = t.control(func(fd int) (err error) {
		if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetUint32(fd, unix.TIOCGPTN)
		}
		return err
	})
	if err == nil {
		err = t.resize("100x30")
	}
	if err == nil {
		err = t.start(cmd, fmt.Sprintf("/dev/pts/%d", number))
	}
	if err != nil {
		return nil, errors.Join(err, master.Close())
	}
	go t.read()
	return t, nil
}

func (t *terminal) start(cmd *exec.Cmd, path string) error {
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	return errors.Join(cmd.Start(), slave.Close())
}

// read keeps what is shown, until nobody has the terminal any more.
func (t *terminal) read() {
	buf := make([]byte, 4096)
	for {
		n, err := t.master.Read(buf)
		t.mu.Lock()
		t.shown.Write(buf[:n])
		t.end = err
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// see looks for what was not seen before.
func (t *terminal) see(pattern *regexp.Regexp) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	unseen := t.shown.String()[t.seen:]
	at := pattern.FindStringIndex(unseen)
	if at == nil {
		return fmt.Errorf("the terminal does not show %q: %q", pattern, unseen)
	}
	t.seen += at[1]
	return nil
}

func (t *terminal) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.shown.String()
}

func (t *terminal) hasEnded() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.end == nil {
		return errors.New("the program has not ended")
	}
	return nil
}

func (t *terminal) press(keys string) error {
	_, err := t.master.WriteString(keys)
	return err
}

// resize gives the terminal a size, such as "120x40", of which the program is told.
func (t *terminal) resize(size string) error {
	var w unix.Winsize
	if _, err := fmt.Sscanf(size, "%dx%d", &w.Col, &w.Row); err != nil {
		return fmt.Errorf("size %q: %w", size, err)
	}
	return t.control(func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &w) })
}

// control does something with the terminal's descriptor, which stays as the runtime has it.
func (t *terminal) control(do func(fd int) error) error {
	raw, err := t.master.SyscallConn()
	if err != nil {
		return err
	}
	var doErr error
	return errors.Join(raw.Control(func(fd uintptr) { doErr = do(int(fd)) }), doErr)
}
