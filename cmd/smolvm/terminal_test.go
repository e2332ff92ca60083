package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm"
)

// terminalDeadline bounds what a test waits for.
const terminalDeadline = 30 * time.Second

// childVariable makes this test program the one that lends its terminal: its value is what the
// command in it does.
const childVariable = "SMOLVM_TEST_TERMINAL_CHILD"

// childCommand stands for a command in a guest. It tells of all it gets; "q" ends it.
type childCommand struct {
	ctx   context.Context
	fails bool
}

func (c *childCommand) Start() error {
	if c.fails {
		return errors.New("no such command")
	}
	return nil
}

func (c *childCommand) Resize(columns, rows int) error {
	fmt.Printf("size %dx%d\r\n", columns, rows)
	return nil
}

func (c *childCommand) Wait() error {
	fmt.Print("ready\r\n")
	typed := make(chan byte)
	go func() {
		in := bufio.NewReader(os.Stdin)
		for {
			b, err := in.ReadByte()
			if err != nil {
				return
			}
			typed <- b
		}
	}()
	for {
		select {
		case <-c.ctx.Done():
			return c.ctx.Err()
		case b := <-typed:
			switch b {
			case 'q':
				return nil
			case 'p':
				panic("as the test wants it")
			}
			fmt.Printf("byte %02x\r\n", b)
		}
	}
}

// TestTerminalChild is no test: it is what the others run in a terminal.
func TestTerminalChild(*testing.T) {
	what := os.Getenv(childVariable)
	if what == "" {
		return
	}
	ctx, ended := notify(context.Background())
	err := lendTerminal(ctx, os.Stdin, sizeOf(os.Stdin), &childCommand{ctx, what == "fail"})
	fmt.Printf("ended: %v\r\n", err)
	os.Exit(int(ended()))
}

// pseudoTerminal is a terminal whose other end is the test.
type pseudoTerminal struct {
	t             *testing.T
	master, slave *os.File
	lines         chan string
}

func newPseudoTerminal(t *testing.T) *pseudoTerminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	p := &pseudoTerminal{t: t, master: master, lines: make(chan string, 100)}
	var number uint32
	p.control(func(fd int) (err error) {
		if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetUint32(fd, unix.TIOCGPTN)
		}
		return err
	})
	p.slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.slave.Close() })
	p.resize(90, 40)
	go func() {
		defer close(p.lines)
		for lines := bufio.NewScanner(master); lines.Scan(); {
			p.lines <- strings.TrimSpace(lines.Text())
		}
	}()
	return p
}

// control does something with the terminal's descriptor, which stays as the runtime has it.
func (p *pseudoTerminal) control(do func(fd int) error) {
	p.t.Helper()
	raw, err := p.master.SyscallConn()
	if err == nil {
		var doErr error
		err = errors.Join(raw.Control(func(fd uintptr) { doErr = do(int(fd)) }), doErr)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *pseudoTerminal) resize(columns, rows uint16) {
	p.t.Helper()
	p.control(func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows})
	})
}

func (p *pseudoTerminal) state() (state unix.Termios) {
	p.t.Helper()
	p.control(func(fd int) error {
		s, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil {
			state = *s
		}
		return err
	})
	return state
}

func (p *pseudoTerminal) typeText(text string) {
	p.t.Helper()
	if _, err := p.master.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
}

// expect waits for a line.
func (p *pseudoTerminal) expect(want string) {
	p.t.Helper()
	deadline := time.After(terminalDeadline)
	var seen []string
	for {
		select {
		case line := <-p.lines:
			if line == want {
				return
			}
			seen = append(seen, line)
		case <-deadline:
			p.t.Fatalf("no %q; there was %q", want, seen)
		}
	}
}

// run runs this test program in the terminal.
func (p *pseudoTerminal) run(what string) *exec.Cmd {
	p.t.Helper()
	program, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), terminalDeadline)
	p.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, program, "-test.run=^TestTerminalChild$")
	cmd.Env = append(os.Environ(), childVariable+"="+what)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.slave, p.slave, p.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = cmd.Wait() })
	return cmd
}

func TestTerminalIsLent(t *testing.T) {
	p := newPseudoTerminal(t)
	before := p.state()
	if before.Lflag&unix.ICANON == 0 || before.Lflag&unix.ECHO == 0 {
		t.Fatal("a new terminal edits no lines: the test could not fail")
	}
	cmd := p.run("wait")
	p.expect("ready")
	if now := p.state(); now.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
		t.Errorf("local modes %#x while the command runs", now.Lflag)
	}
	p.typeText("\x03\x1a\x04")
	p.expect("byte 03")
	p.expect("byte 1a")
	p.expect("byte 04")
	p.resize(132, 43)
	p.expect("size 132x43")
	p.typeText("q")
	p.expect("ended: <nil>")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if after := p.state(); after != before {
		t.Errorf("the terminal is %+v, and was %+v", after, before)
	}
}

func TestTerminalIsGivenBack(t *testing.T) {
	for name, end := range map[string]func(*pseudoTerminal, *exec.Cmd) error{
		"SIGTERM": func(_ *pseudoTerminal, cmd *exec.Cmd) error { return cmd.Process.Signal(syscall.SIGTERM) },
		"SIGHUP":  func(_ *pseudoTerminal, cmd *exec.Cmd) error { return cmd.Process.Signal(syscall.SIGHUP) },
		"SIGINT":  func(_ *pseudoTerminal, cmd *exec.Cmd) error { return cmd.Process.Signal(syscall.SIGINT) },
		"panic":   func(p *pseudoTerminal, _ *exec.Cmd) error { p.typeText("p"); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPseudoTerminal(t)
			before := p.state()
			cmd := p.run("wait")
			p.expect("ready")
			if p.state() == before {
				t.Fatal("the terminal was not taken: the test could not fail")
			}
			if err := end(p, cmd); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Error("the program ended well")
			}
			if after := p.state(); after != before {
				t.Errorf("the terminal is %+v, and was %+v", after, before)
			}
		})
	}
}

func TestTerminalStaysIfNothingStarts(t *testing.T) {
	p := newPseudoTerminal(t)
	before := p.state()
	cmd := p.run("fail")
	p.expect("ended: no such command")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if p.state() != before {
		t.Error("the terminal has changed")
	}
}

func TestWithoutATerminalNoneIsLent(t *testing.T) {
	if isTerminal(os.Stdin) {
		stdin := os.Stdin
		t.Cleanup(func() { os.Stdin = stdin })
		file, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		os.Stdin = file
	}
	cmd := &smolvm.Cmd{}
	if err := runInTerminal(context.Background(), cmd); !errors.Is(err, errNoTerminal) {
		t.Errorf("it ended with %v", err)
	}
	if cmd.Terminal != nil {
		t.Error("the command was given a terminal")
	}
}

func TestSizeOfWhatHasNone(t *testing.T) {
	p := newPseudoTerminal(t)
	if got := sizeOf(p.slave); got != (terminalSize{90, 40}) {
		t.Errorf("a terminal of 90x40 is %v", got)
	}
	p.resize(0, 0)
	if got := sizeOf(p.slave); got != (terminalSize{80, 24}) {
		t.Errorf("a terminal without a size is %v", got)
	}
}
