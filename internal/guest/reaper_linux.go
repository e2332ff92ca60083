package guest

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reaper owns the waiting for children, of the whole process: those that it
// started, whose status it keeps for whoever waits, and the orphans that PID 1
// inherits. In a process that has a Reaper nobody else may wait for a child, so
// os/exec cannot be used there.
type Reaper struct {
	mu       sync.Mutex
	children map[int]*child
	ending   bool          // nothing is started any more
	reaped   chan struct{} // has a token after a child went
	stop     context.CancelFunc
	stopped  chan struct{}

	// detours is how many reasons there are to start processes by way of a launcher.
	detours atomic.Int32
}

// child is a process that a Reaper started.
type child struct {
	reaper *Reaper
	pid    int
	done   chan struct{} // closed once it ended
	status unix.WaitStatus
}

// NewReaper starts a Reaper. Close it to end it.
func NewReaper() *Reaper {
	ctx, stop := context.WithCancel(context.Background())
	r := &Reaper{
		children: make(map[int]*child),
		reaped:   make(chan struct{}, 1),
		stop:     stop,
		stopped:  make(chan struct{}),
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	go func() {
		defer close(r.stopped)
		defer signal.Stop(ended)
		for {
			for r.reap() {
			}
			select {
			case <-ended:
			case <-ctx.Done():
				return
			}
		}
	}()
	return r
}

// Close ends the Reaper. Children that still run are waited for by nobody.
func (r *Reaper) Close() {
	r.stop()
	<-r.stopped
}

// errPoweringOff says why nothing is started.
var errPoweringOff = errors.New("the guest powers off")

// startNoMore keeps processes from being started from now on: a host that has a process started
// again when it ends would have that done while all are to end.
func (r *Reaper) startNoMore() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ending = true
}

// reap collects one child that ended. It reports whether there was one.
func (r *Reaper) reap() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var status unix.WaitStatus
	pid, err := unix.Wait4(-1, &status, unix.WNOHANG|unix.WALL, nil)
	if errors.Is(err, unix.EINTR) {
		return true
	}
	if err != nil || pid == 0 {
		return false
	}
	if c, ok := r.children[pid]; ok {
		delete(r.children, pid)
		c.status = status
		close(c.done)
	}
	select {
	case r.reaped <- struct{}{}:
	default:
	}
	return true
}

// start starts a process as syscall.ForkExec does.
func (r *Reaper) start(program string, argv []string, attr *syscall.ProcAttr) (*child, error) {
	if r.detours.Load() > 0 {
		return r.launch(program, argv, attr)
	}
	return r.fork(program, argv, attr)
}

// fork starts a process. The lock keeps reap away both
// until the child is known and from a child that could not execute the program,
// which ForkExec collects itself.
func (r *Reaper) fork(program string, argv []string, attr *syscall.ProcAttr) (*child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ending {
		return nil, errPoweringOff
	}
	pid, err := syscall.ForkExec(program, argv, attr)
	if err != nil {
		return nil, err
	}
	c := &child{reaper: r, pid: pid, done: make(chan struct{})}
	r.children[pid] = c
	return c, nil
}

// signal sends a signal to the child's process group. It fails with
// unix.ESRCH once the child ended: its number may be another's by then.
func (c *child) signal(sig unix.Signal) error { return c.kill(-c.pid, sig) }

// signalAlone is signal for the child itself.
func (c *child) signalAlone(sig unix.Signal) error { return c.kill(c.pid, sig) }

func (c *child) kill(to int, sig unix.Signal) error {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	if c.reaper.children[c.pid] != c {
		return unix.ESRCH
	}
	return unix.Kill(to, sig)
}
