package guest

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestReaper(t *testing.T)       { runHelper(t, "reaper") }
func TestEndProcesses(t *testing.T) { runHelper(t, "end processes") }

func startShell(r *Reaper, line string, out *os.File) (*child, error) {
	cmd := shellCommand(line, []string{"PATH=" + defaultPath}, "/")
	cmd.stdout, cmd.stderr = out, os.Stderr
	return cmd.start(r)
}

// The right status reaches the right waiter though orphans die all the time, and
// none of those stays a zombie.
func helpReaper() error {
	r := NewReaper()
	defer r.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	garbage, err := os.CreateTemp("", "garbage")
	if err != nil {
		return err
	}
	defer os.Remove(garbage.Name())
	if _, err := garbage.WriteString("no program"); err != nil {
		return err
	}
	if err := errors.Join(garbage.Chmod(0o755), garbage.Close()); err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make(chan error, 1000)
	for i := range 60 {
		wg.Go(func() {
			c, err := startShell(r, fmt.Sprintf("(sh -c 'exit 77' &) ; (exit 66 &) ; exit %d", i), null)
			if err != nil {
				errs <- err
				return
			}
			<-c.done
			if got := c.status.ExitStatus(); got != i {
				errs <- fmt.Errorf("status %d instead of %d", got, i)
			}
			if err := c.signal(unix.SIGTERM); !errors.Is(err, unix.ESRCH) {
				errs <- fmt.Errorf("signal to one that ended: %v", err)
			}
			// One that cannot be executed is collected where it was started.
			bad := command{program: garbage.Name(), argv: []string{"x"}, dir: "/", stdout: null, stderr: null}
			if _, err := bad.start(r); !errors.Is(err, unix.ENOEXEC) {
				errs <- fmt.Errorf("started garbage: %v", err)
			}
		})
	}
	wg.Wait()
	deadline := time.After(10 * time.Second)
	for {
		dir, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		others := 0
		for _, entry := range dir {
			if pid, err := strconv.Atoi(entry.Name()); err == nil && pid > 1 {
				others++
			}
		}
		if others == 0 {
			break
		}
		select {
		case <-r.reaped:
		case <-deadline:
			return fmt.Errorf("%d processes were never reaped", others)
		}
	}
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// Processes that end when asked are waited for and no longer; others are killed.
func helpEndProcesses() error {
	// Who started the tests may ignore hangups, and children would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP)
	r := NewReaper()
	defer r.Close()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	c, err := startShell(r, "trap 'echo asked; exit 0' TERM; (sleep 60 &); while :; do sh -c 'echo ready; exec sleep 60'; done", write)
	if err != nil {
		return err
	}
	write.Close()
	buf := make([]byte, 6)
	if _, err := io.ReadFull(read, buf); err != nil {
		return err
	}
	n := 0
	if err := eachProcess("/proc", func(process) { n++ }); err != nil || n < 2 || childless() {
		return fmt.Errorf("%d processes, childless %v, %v", n, childless(), err)
	}
	begin := time.Now()
	endProcesses(r, log)
	if took := time.Since(begin); took >= endGrace {
		return fmt.Errorf("waited for %v although all had ended", took)
	}
	<-c.done
	if rest, err := io.ReadAll(read); err != nil || string(rest) != "asked\n" {
		return fmt.Errorf("not asked politely: %q, %v", rest, err)
	}

	shell := command{program: "/bin/sh", argv: []string{"sh", "-i"}, env: []string{"PATH=" + defaultPath}, dir: "/"}
	interactive, err := startTerminal(r, shell, ptyRequest{Term: "dumb"})
	if err != nil {
		return err
	}
	defer interactive.master.Close()
	if _, err := interactive.master.Read(buf[:1]); err != nil { // its prompt: it ignores SIGTERM by now
		return err
	}
	begin = time.Now()
	endProcesses(r, log)
	<-interactive.child.done
	if took := time.Since(begin); took >= endGrace || interactive.child.status.Signal() == unix.SIGKILL {
		return fmt.Errorf("an interactive shell held for %v, and ended with %v", took, interactive.child.status)
	}

	stubborn, err := startShell(r, "trap '' TERM HUP; sleep 60 & wait", os.Stderr)
	if err != nil {
		return err
	}
	// It must have set its trap before it is asked.
	for {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(stubborn.pid) + "/status")
		if err != nil {
			return err
		}
		if _, ignored, _ := strings.Cut(string(status), "SigIgn:\t"); len(ignored) >= 16 {
			if mask, _ := strconv.ParseUint(ignored[:16], 16, 64); mask&(1<<(uint(unix.SIGTERM)-1)) != 0 {
				break
			}
		}
	}
	endProcesses(r, log)
	<-stubborn.done
	if !stubborn.status.Signaled() || stubborn.status.Signal() != unix.SIGKILL {
		return fmt.Errorf("ended with %v", stubborn.status)
	}
	// Then nothing may begin any more.
	r.startNoMore()
	if c, err := startShell(r, "true", os.Stderr); !errors.Is(err, errPoweringOff) {
		return fmt.Errorf("started %v, %v", c, err)
	}
	return nil
}

func TestSignals(t *testing.T) { runHelper(t, "signals") }

// No signal from within the guest ends PID 1, and commands do not inherit that.
func helpSignals() error {
	b := &boot{off: make(chan struct{}, 1), reaper: NewReaper()}
	defer b.reaper.Close()
	b.catchSignals()
	defer signal.Reset()
	for _, name := range []string{"HUP", "QUIT", "PIPE", "ALRM", "TSTP", "TERM", "INT", "PWR", "USR1", "USR2"} {
		c, err := startShell(b.reaper, "kill -"+name+" 1; kill -TERM $$", os.Stderr)
		if err != nil {
			return err
		}
		<-c.done
		if !c.status.Signaled() || c.status.Signal() != unix.SIGTERM {
			return fmt.Errorf("a command does not die of SIGTERM: %v", c.status)
		}
	}
	<-b.off
	return nil
}

func TestParseProcess(t *testing.T) {
	for stat, want := range map[string]process{
		"12 (a) b) S 1 12 12 34816 12 4194304 0 0": {pid: 12, leader: true, terminal: true},
		"12 (a) S 1 12 3 0 -1 4194304 0 0":         {pid: 12},
		"12 (kthreadd) S 0 0 0 0 -1 2129984 0":     {},
		"12 (x) Z 1 1 1 0 -1 4194304 0":            {},
		"":                                         {},
		"12 (x":                                    {},
	} {
		if got, ok := parseProcess(12, []byte(stat)); got != want || ok != (want.pid != 0) {
			t.Errorf("%q: %+v, %v", stat, got, ok)
		}
	}
}

func FuzzParseProcess(f *testing.F) {
	f.Add("a", "S 1 12 12 0 -1 4194304 0 0")
	f.Add("a) Z", "Z 1 12 12 0 -1 2129984 0 0")
	f.Fuzz(func(t *testing.T, name, rest string) {
		if strings.Contains(rest, ")") {
			return
		}
		// The name makes no difference.
		got, ok := parseProcess(12, []byte("12 ("+name+") "+rest))
		plain, plainOK := parseProcess(12, []byte("12 (x) "+rest))
		if got != plain || ok != plainOK {
			t.Errorf("%+v, %v; without the name %+v, %v", got, ok, plain, plainOK)
		}
	})
}
