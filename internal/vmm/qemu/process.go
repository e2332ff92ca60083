package qemu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// process is a child that dies with this process and is reaped when it ends.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it is reaped and its output has been read
	err  error         // how it ended, valid once done is closed
}

// startProcess starts cmd in a session of its own, so that the terminal's
// Ctrl-C does not reach it.
//
// The kernel sends the parent-death signal when the thread that forked ends,
// not the process. So the goroutine that starts the child keeps its thread for
// as long as the child lives.
func startProcess(cmd *exec.Cmd) (*process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// kill ends the process and waits until it is gone. Only a process that the
// kernel cannot end is given up on.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill process %d: %w", p.pid(), err)
	}
	return p.wait(killTimeout)
}

// wait waits for the end of the process.
func (p *process) wait(limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		return fmt.Errorf("process %d does not end", p.pid())
	}
}

// inheritance collects the files that a child gets besides its standard ones.
type inheritance struct{ files []*os.File }

// add returns the descriptor that f will have in the child.
func (i *inheritance) add(f *os.File) int {
	i.files = append(i.files, f)
	return 2 + len(i.files)
}
