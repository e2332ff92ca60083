package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm"
	"github.com/smolvm/smolvm/internal/testworld"
)

// The verbs measured beside many VMs, and the limit they are held against: a program that is
// started, and looks up no VM.
const (
	programStart = "smolvm version"
	execTrue     = "exec VM true"
	verbRounds   = 40
	// crowdMemory is what each of many VMs has, in MiB.
	crowdMemory = 128
	copySize    = 16 << 20
	copyRounds  = 3
)

// readingVerbs answer what people ask.
func readingVerbs(vm string) [][]string {
	return [][]string{
		{"ls"}, {"ls", "--json"}, {"ports"}, {"ports", vm}, {"inspect", vm}, {"env", "ls", vm},
	}
}

// measureCommand measures the command while many VMs run, each with an owner of its own.
func measureCommand(ctx context.Context, set settings) (_ string, err error) {
	on, err := hostLine()
	if err != nil {
		return "", err
	}
	program, err := filepath.Abs("bin/smolvm")
	if err != nil {
		return "", err
	}
	c := crowd{program: program, dir: testworld.Scratch + "/crowd"}
	defer func() { err = errors.Join(err, c.end()) }()
	if err := c.start(ctx, set.crowd); err != nil {
		return "", err
	}
	s := samples[time.Duration]{}
	if err := c.verbs(s); err != nil {
		return "", err
	}
	if _, err := c.command(append([]string{"stop", "--force"}, c.names[1:]...)...); err != nil {
		return "", err
	}
	if _, err := c.command("resume", c.names[0]); err != nil {
		return "", err
	}
	if err := c.execs(s); err != nil {
		return "", err
	}
	adoptions, err := c.adopt(ctx, s)
	if err != nil {
		return "", err
	}
	copies, err := c.copies(s)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# The command\n\nMade by `make bench` (this part alone: `make bench BENCHFLAGS='-only %s'`), beside %d VMs of %d MiB. %s.\n\n",
		partCommand, set.crowd, crowdMemory, on)
	fmt.Fprintf(&b, "| verb | median | 95 of 100 | ÷ `%s` (%s) | to reach |\n|---|---:|---:|---:|---|\n", programStart, ms(s.median(programStart)))
	for _, args := range readingVerbs(c.names[0]) {
		name := strings.Join(args, " ")
		median := s.median(name)
		verdict := "reached"
		if median > 30*time.Millisecond {
			verdict = "**missed**"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %.1f | < 30 ms: %s |\n", name, ms(median), ms(s.quantile(name, 0.95)), over(median, s.median(programStart)), verdict)
	}
	fmt.Fprintf(&b, "\nAll VMs are paused meanwhile, since idle emulated guests take the host's processors. What follows is with one VM that runs, the others stopped.\n\n")
	fmt.Fprintf(&b, "`exec VM true` takes %s (95 of 100: %s), %.1f times `%s`. %s\n%s",
		ms(s.median(execTrue)), ms(s.quantile(execTrue, 0.95)), over(s.median(execTrue), s.median(programStart)), programStart, adoptions, copies)
	return b.String(), nil
}

// crowd is many VMs of background owners.
type crowd struct {
	program, dir string
	names        []string
}

func (c *crowd) options() []smolvm.Option {
	return []smolvm.Option{smolvm.DataDir(c.dir), smolvm.Background(), smolvm.OwnerProgram(c.program), smolvm.Keep()}
}

// command runs the command and returns its output.
func (c *crowd) command(args ...string) ([]byte, error) {
	cmd := exec.Command(c.program, args...)
	cmd.Env = append(os.Environ(), "SMOLVM_DATA_DIR="+c.dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("smolvm %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return out, nil
}

// start starts the VMs, a few at a time, and pauses them: idle guests that are emulated take some
// percent of a processor each, and many of them all there is. Then not the command would be
// measured.
func (c *crowd) start(ctx context.Context, vms int) error {
	atOnce := make(chan struct{}, 2)
	errs := make([]error, vms)
	var starting sync.WaitGroup
	for i := range vms {
		name := fmt.Sprintf("crowd-%d", i)
		c.names = append(c.names, name)
		atOnce <- struct{}{}
		starting.Go(func() {
			defer func() { <-atOnce }()
			vm, err := smolvm.Launch(ctx, append(c.options(), smolvm.Name(name), smolvm.Memory(crowdMemory))...)
			if err == nil {
				_, err = vm.ExposeLocal(ctx, guestPort)
				err = errors.Join(err, vm.Pause(ctx), vm.Close())
			}
			errs[i] = err
		})
		if i%10 == 9 {
			progress("%d of %d VMs run", i+1, vms)
		}
	}
	starting.Wait()
	return errors.Join(errs...)
}

// end removes the VMs.
func (c *crowd) end() error {
	_, err := c.command(append([]string{"rm", "-f"}, c.names...)...)
	return err
}

// verbs times the verbs, in turns.
func (c *crowd) verbs(s samples[time.Duration]) error {
	all := append(readingVerbs(c.names[0]), []string{"version"})
	for range verbRounds {
		for _, args := range all {
			name := strings.Join(args, " ")
			if args[0] == "version" {
				name = programStart
			}
			if err := timed(s, name, func() error { _, err := c.command(args...); return err }); err != nil {
				return err
			}
		}
	}
	return nil
}

// execs times a command in a guest.
func (c *crowd) execs(s samples[time.Duration]) error {
	for range verbRounds {
		if err := timed(s, execTrue, func() error { _, err := c.command("exec", c.names[0], "true"); return err }); err != nil {
			return err
		}
	}
	return nil
}

// adopt kills an owner again and again, and times the next command, which gives its VM a new one.
func (c *crowd) adopt(ctx context.Context, s samples[time.Duration]) (string, error) {
	const adoption = "adoption"
	for range 10 {
		vm, err := smolvm.Open(ctx, c.names[0], c.options()...)
		if err != nil {
			return "", err
		}
		info, err := vm.Info(ctx)
		if err == nil {
			err = killAndWait(info.Owner.PID)
		}
		if err = errors.Join(err, vm.Close()); err != nil {
			return "", err
		}
		if err := timed(s, adoption, func() error { _, err := c.command("exec", c.names[0], "true"); return err }); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("After `kill -9` of its owner the next `exec VM true`, which gives the VM a new one, takes %s (median of 10, at most %s).\n",
		ms(s.median(adoption)), ms(s.most(adoption))), nil
}

func killAndWait(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, syscall.SIGKILL, nil, 0); err != nil {
		return err
	}
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// copies times cp against the same bytes through a command's input and output.
func (c *crowd) copies(s samples[time.Duration]) (string, error) {
	file := filepath.Join(c.dir, "copied")
	if err := os.WriteFile(file, bytes.Repeat([]byte("0123456789abcdef"), copySize/16), 0o600); err != nil {
		return "", err
	}
	vm := c.names[0]
	for range copyRounds {
		in, err := os.Open(file)
		if err != nil {
			return "", err
		}
		err = errors.Join(
			timed(s, "cp to", func() error { _, err := c.command("cp", file, vm+":/root/copied"); return err }),
			timed(s, "cp from", func() error { _, err := c.command("cp", vm+":/root/copied", file); return err }),
			timed(s, "exec to", func() error { return c.piped(in, io.Discard, "exec", "-i", vm, "sh", "-c", "cat >/root/copied") }),
			timed(s, "exec from", func() error { return c.piped(nil, io.Discard, "exec", vm, "cat", "/root/copied") }),
			in.Close(),
		)
		if err != nil {
			return "", err
		}
	}
	rate := func(name string) string {
		return strconv.FormatFloat(copySize/1e6/s.median(name).Seconds(), 'f', 1, 64) + " MB/s"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "A file of %d MiB, beside the same bytes through a command's input or output:\n\n", copySize>>20)
	comparisons(&b, []comparison{
		{"`cp FILE VM:` ÷ `exec -i VM cat`", rate("cp to"), rate("exec to"), over(s.median("exec to"), s.median("cp to")), atLeast(1)},
		{"`cp VM: FILE` ÷ `exec VM cat`", rate("cp from"), rate("exec from"), over(s.median("exec from"), s.median("cp from")), atLeast(1)},
	})
	return b.String(), nil
}

func (c *crowd) piped(in io.Reader, out io.Writer, args ...string) error {
	cmd := exec.Command(c.program, args...)
	cmd.Env = append(os.Environ(), "SMOLVM_DATA_DIR="+c.dir)
	cmd.Stdin, cmd.Stdout = in, out
	return cmd.Run()
}
