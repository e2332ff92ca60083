package qemu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errNoStatus is how an adopted process ended: the kernel tells its parent only.
var errNoStatus = errors.New("why is not known, since another process had started it")

// process is a child, or a process that was adopted.
type process struct {
	id   int
	end  func() error  // kills it; os.ErrProcessDone if there is none any more
	done chan struct{} // closed when it is gone and, of a child, its output has been read
	err  error         // how it ended, valid once done is closed: nil if in order
}

// startProcess starts cmd in a session of its own, so that the terminal's
// Ctrl-C does not reach it. Unless it is detached, the child dies with this process.
//
// The kernel sends the parent-death signal when the thread that forked ends,
// not the process. So the goroutine that starts the child keeps its thread for
// as long as the child lives.
func startProcess(cmd *exec.Cmd, detached bool) (*process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if !detached {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	p := &process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		if !detached {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
		}
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = describeEnd(cmd.Wait())
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	p.id, p.end = cmd.Process.Pid, cmd.Process.Kill
	return p, nil
}

// describeEnd says of a signal which one it was.
func describeEnd(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return fmt.Errorf("killed by signal %d (%w)", status.Signal(), err)
		}
	}
	return err
}

// adoptProcess watches a process that is no child of ours, and takes its handle over.
func adoptProcess(id int, handle *pidHandle) *process {
	p := &process{id: id, end: handle.kill, done: make(chan struct{})}
	go func() {
		p.err = errNoStatus
		if err := handle.wait(); err != nil {
			p.err = fmt.Errorf("watch process %d: %w", id, err)
		}
		_ = handle.Close() // it was only watched
		close(p.done)
	}()
	return p
}

// kill ends the process and waits until it is gone. Only a process that the
// kernel cannot end is given up on.
func (p *process) kill() error {
	if err := p.end(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill process %d: %w", p.id, err)
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
		return fmt.Errorf("process %d does not end", p.id)
	}
}

// pidHandle stands for one process, whatever becomes of its ID.
type pidHandle struct{ *os.File }

func openPID(id int) (*pidHandle, error) {
	fd, err := unix.PidfdOpen(id, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	// Since it does not block, waiting takes no thread.
	h := &pidHandle{os.NewFile(uintptr(fd), "pidfd")}
	if err := h.SetReadDeadline(time.Time{}); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for processes: %w", err), h.Close())
	}
	return h, nil
}

// wait returns when the process has ended. Its limit is the handle's read deadline.
func (h *pidHandle) wait() error {
	conn, err := h.SyscallConn()
	if err != nil {
		return err
	}
	var pollErr error
	err = conn.Read(func(fd uintptr) bool {
		var ended bool
		ended, pollErr = pollEnd(fd)
		return ended || pollErr != nil
	})
	return errors.Join(err, pollErr)
}

// ended tells whether the process has ended.
func (h *pidHandle) ended() bool {
	conn, err := h.SyscallConn()
	if err != nil {
		return false
	}
	var ended bool
	err = conn.Control(func(fd uintptr) { ended, _ = pollEnd(fd) })
	return err == nil && ended
}

func pollEnd(fd uintptr) (bool, error) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if !errors.Is(err, unix.EINTR) {
			return n == 1, os.NewSyscallError("poll", err)
		}
	}
}

func (h *pidHandle) kill() error {
	conn, err := h.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = conn.Control(func(fd uintptr) { sendErr = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	if err != nil || errors.Is(sendErr, unix.ESRCH) {
		// The handle is closed when the process has ended, not before.
		return os.ErrProcessDone
	}
	return os.NewSyscallError("pidfd_send_signal", sendErr)
}

// inheritance collects the files that a child gets besides its standard ones.
type inheritance struct{ files []*os.File }

// add returns the descriptor that f will have in the child.
func (i *inheritance) add(f *os.File) int {
	i.files = append(i.files, f)
	return 2 + len(i.files)
}
