package forward

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// pipeSize is how much a pipe takes, where the kernel allows so much, and the
// most that is moved at once.
const pipeSize = 1 << 20

// errNoPipe says that nothing was spliced, and copying is what is left: no more
// files can be opened, mostly.
var errNoPipe = errors.New("make pipe")

// pipe is where the kernel keeps bytes between two sockets.
type pipe struct{ r, w int }

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoPipe, err)
	}
	// All pipes of a user may be large only up to some sum; small ones work too.
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	return &pipe{r: fds[0], w: fds[1]}, nil
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// maxIdlePipes bounds the pipes that are kept for the next one who needs one.
const maxIdlePipes = 32

// pipes are those that nobody uses. Its zero value is ready; its methods may be called
// concurrently.
type pipes struct {
	mu     sync.Mutex
	idle   []*pipe
	closed bool
}

// get returns an empty pipe.
func (ps *pipes) get() (*pipe, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if n := len(ps.idle); n > 0 {
		p := ps.idle[n-1]
		ps.idle = ps.idle[:n-1]
		return p, nil
	}
	return newPipe()
}

// put takes a pipe back, which must be empty.
func (ps *pipes) put(p *pipe) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.closed || len(ps.idle) == maxIdlePipes {
		p.close()
		return
	}
	ps.idle = append(ps.idle, p)
}

// close closes all pipes, now or once they are put back.
func (ps *pipes) close() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.closed = true
	for _, p := range ps.idle {
		p.close()
	}
	ps.idle = nil
}

// splice moves bytes from src to dst until the end of src, and counts them. They
// never leave the kernel. The standard library's copying does the same, but keeps a
// pipe for each connection that is idle, and counts at the end only. After an
// errNoPipe it may be tried again, or another way.
func splice(dst, src *net.TCPConn, count *atomic.Int64, b *buffers) error {
	in, err := src.SyscallConn()
	if err != nil {
		return err
	}
	out, err := dst.SyscallConn()
	if err != nil {
		return err
	}
	s := &splicer{count: count, buffers: b}
	fill, drain := s.fill, s.drain
	for {
		if err := in.Read(fill); err != nil {
			return err
		}
		if s.err != nil || s.held == 0 {
			return s.err
		}
		err := out.Write(drain)
		if err == nil {
			err = s.err
		}
		if err != nil {
			s.pipe.close() // something may be left in it
			return err
		}
		s.release()
	}
}

// splicer is the state of one splice.
type splicer struct {
	count   *atomic.Int64
	buffers *buffers
	pipe    *pipe // while there are bytes in it
	held    int64 // so many
	err     error
}

// fill moves what a socket has received into a pipe. It returns false, without a
// pipe, if there is nothing yet. With held 0 and no error the socket has ended.
func (s *splicer) fill(socket uintptr) bool {
	if s.pipe, s.err = s.buffers.pipes.get(); s.err != nil {
		return true
	}
	s.held, s.err = move(int(socket), s.pipe.w, pipeSize)
	if s.held > 0 {
		return true
	}
	s.held = 0
	s.release()
	return s.err != unix.EAGAIN
}

// release gives the pipe back, which is empty.
func (s *splicer) release() {
	s.buffers.pipes.put(s.pipe)
	s.pipe = nil
}

// drain moves what is in the pipe to a socket. It returns false if there is no
// room for all of it yet.
func (s *splicer) drain(socket uintptr) bool {
	for s.held > 0 {
		n, err := move(s.pipe.r, int(socket), s.held)
		if err == unix.EAGAIN {
			return false
		}
		if err != nil {
			s.err = err
			return true
		}
		s.held -= n
		s.count.Add(n)
	}
	return true
}

// move is the system call, begun again when a signal interrupts it.
func move(from, to int, most int64) (int64, error) {
	for {
		n, err := unix.Splice(from, nil, to, nil, int(most), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR {
			return n, err
		}
	}
}
