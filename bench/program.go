package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/smolvm/smolvm/internal/network/nettest"
)

const (
	// startPatience bounds how long a program may take until it listens.
	startPatience = 20 * time.Second
	startPause    = 5 * time.Millisecond
)

// place is a network namespace in which programs are started. They are killed when
// this process dies, which the kernel ties to the thread that starts them: so
// there is one thread for each place, as long as the place.
type place struct {
	work chan func()
	done chan error
}

// newPlace makes a place of a namespace; nil is this process's own.
func newPlace(ns *nettest.Namespace) *place {
	p := &place{work: make(chan func()), done: make(chan error, 1)}
	serve := func() error {
		for f := range p.work {
			f()
		}
		return nil
	}
	go func() {
		if ns != nil {
			p.done <- ns.Try(serve)
			return
		}
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		p.done <- serve()
	}()
	return p
}

// do runs f in the place.
func (p *place) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case p.work <- func() { result <- f() }:
		return <-result
	case err := <-p.done:
		p.done <- err
		return fmt.Errorf("enter network namespace: %w", err)
	}
}

// close gives up the place. What was started in it must have ended.
func (p *place) close() error {
	close(p.work)
	return <-p.done
}

// program is a process that runs until it is stopped.
type program struct{ cmd *exec.Cmd }

// start starts a program. The caller owes a stop.
func (p *place) start(cmd *exec.Cmd) (*program, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := p.do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return &program{cmd}, nil
}

// startReady starts a program and waits until it says that it is ready.
func (p *place) startReady(cmd *exec.Cmd) (*program, error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started, err := p.start(cmd)
	if err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil && line != "ready\n" {
		err = fmt.Errorf("%s said %q", cmd.Path, line)
	}
	if err != nil {
		return nil, errors.Join(err, started.stop())
	}
	return started, nil
}

// stop kills the program and waits for its end.
func (p *program) stop() error {
	if err := p.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("end %s: %w", p.cmd.Path, err)
	}
	_ = p.cmd.Wait() // it says that it was killed
	return nil
}

// output runs a program to its end and returns what it wrote.
func (p *place) output(cmd *exec.Cmd) ([]byte, error) {
	var out []byte
	err := p.do(func() (err error) {
		out, err = cmd.Output()
		return err
	})
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			out = append(out, exit.Stderr...)
		}
		return out, fmt.Errorf("%s: %w: %s", cmd.Path, err, out)
	}
	return out, nil
}

// awaitListener waits until something in the place listens on a TCP port. It does not
// connect: iperf3's server would take that for a client.
func (p *place) awaitListener(port int) error {
	deadline := time.Now().Add(startPatience)
	for {
		var found bool
		if err := p.do(func() (err error) {
			found, err = listens(port)
			return err
		}); err != nil || found {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("nothing listens on port %d", port)
		}
		time.Sleep(startPause)
	}
}

// listens looks through the sockets of the calling thread's network.
func listens(port int) (bool, error) {
	local := fmt.Sprintf(":%04X", port)
	for _, file := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		sockets, err := os.ReadFile(file)
		if err != nil {
			return false, err
		}
		for line := range strings.Lines(string(sockets)) {
			if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], local) && f[3] == "0A" {
				return true, nil
			}
		}
	}
	return false, nil
}

// closers are what has to be closed, the last first.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

// Close closes all and forgets them.
func (c *closers) Close() error {
	var errs []error
	for i := len(*c) - 1; i >= 0; i-- {
		errs = append(errs, (*c)[i]())
	}
	*c = nil
	return errors.Join(errs...)
}
