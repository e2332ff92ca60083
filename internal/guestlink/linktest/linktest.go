// Package linktest gives tests and benchmarks a guest without a VM: the real guest
// server, in a process of its own within a network namespace, behind a socket
// that behaves as a virtual machine's serial port does.
package linktest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guest"
	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/network/nettest"
)

// guestVariable marks the copy of the program that is the guest.
const guestVariable = "SMOLVM_LINKTEST_GUEST"

// listenerFile is where the guest finds the listening end of its port.
const listenerFile = 3

// Main must come first in main, or in TestMain: in a process that Start started it
// serves as the guest and never returns.
func Main() {
	guest.HelperMain()
	if os.Getenv(guestVariable) == "" {
		return
	}
	os.Unsetenv(guestVariable)
	fmt.Fprintln(os.Stderr, "linktest:", serve())
	os.Exit(1)
}

// Guest is a guest that runs.
type Guest struct {
	dir string
	cmd *exec.Cmd
}

// Start starts a guest within a namespace. The caller owes a Close.
func Start(ns *nettest.Namespace) (*Guest, error) {
	dir, err := os.MkdirTemp("", "linktest")
	if err != nil {
		return nil, err
	}
	g := &Guest{dir: dir}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: g.socket()})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	file, err := listener.File()
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	defer file.Close()
	g.cmd = exec.Command("/proc/self/exe")
	g.cmd.Env = append(os.Environ(), guestVariable+"=1")
	g.cmd.Stderr = os.Stderr
	g.cmd.ExtraFiles = []*os.File{file}
	if err := ns.Try(g.cmd.Start); err != nil {
		return nil, errors.Join(fmt.Errorf("start guest: %w", err), os.RemoveAll(dir))
	}
	return g, nil
}

// PID is the guest's process.
func (g *Guest) PID() int { return g.cmd.Process.Pid }

// Dial connects to the guest's port. As with a VM, one connection at a time is served.
func (g *Guest) Dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", g.socket())
}

func (g *Guest) socket() string { return filepath.Join(g.dir, "port") }

// Close ends the guest.
func (g *Guest) Close() error {
	killErr := g.cmd.Process.Kill()
	_ = g.cmd.Wait() // it says that it was killed
	return errors.Join(killErr, os.RemoveAll(g.dir))
}

// serve is the guest. It returns only if it cannot go on.
func serve() error {
	// The signal must not depend on which thread of the parent started us.
	parent := os.Getppid()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	listener, err := net.FileListener(os.NewFile(listenerFile, "port"))
	if err != nil {
		return err
	}
	go dieWith(parent)
	guest.RelaxCollector()
	p := newPort()
	go p.accept(listener)
	server := guest.NewServer(system{}, guest.NewReaper(), slog.New(slog.NewTextHandler(io.Discard, nil)))
	return server.ServeChannel(p, func([]byte) {})
}

// dieWith ends this process once its parent is gone.
func dieWith(parent int) {
	fd, err := unix.PidfdOpen(parent, 0)
	if err == nil && os.Getppid() == parent {
		for errors.Is(wait(fd), unix.EINTR) {
			continue
		}
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

// wait waits until a process has ended.
func wait(pidfd int) error {
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1)
	return err
}

// system has nothing to configure.
type system struct{}

func (system) Ready(context.Context) error                        { return nil }
func (system) Configure(context.Context, guestapi.Identity) error { return nil }
func (system) Rehearse(context.Context, guestapi.Identity) error  { return nil }
func (system) StepClock(time.Duration) (time.Time, error)         { return time.Now(), nil }
func (system) Rest()                                              {}
func (system) Sync()                                              {}
func (system) PowerOff()                                          { os.Exit(0) }
func (system) Console() io.Writer                                 { return os.Stderr }

// port behaves as a virtio-serial port does: hosts come and go, one at a time, and
// while there is none it reads as ended and a write waits.
type port struct {
	mu     sync.Mutex
	change *sync.Cond
	host   net.Conn
}

func newPort() *port {
	p := &port{}
	p.change = sync.NewCond(&p.mu)
	return p
}

func (p *port) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		for p.host != nil {
			p.change.Wait()
		}
		p.host = conn
		p.change.Broadcast()
		p.mu.Unlock()
	}
}

// Read implements io.Reader.
func (p *port) Read(b []byte) (int, error) {
	p.mu.Lock()
	host := p.host
	p.mu.Unlock()
	if host == nil {
		return 0, io.EOF
	}
	n, err := host.Read(b)
	if err != nil {
		p.drop(host)
		return n, io.EOF
	}
	return n, nil
}

// Write implements io.Writer.
func (p *port) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		p.mu.Lock()
		for p.host == nil {
			p.change.Wait()
		}
		host := p.host
		p.mu.Unlock()
		n, err := host.Write(rest)
		rest = rest[n:]
		if err != nil {
			p.drop(host)
		}
	}
	return len(b), nil
}

// drop notes that a host has gone.
func (p *port) drop(host net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	host.Close()
	if p.host == host {
		p.host = nil
		p.change.Broadcast()
	}
}
