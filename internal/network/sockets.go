package network

import (
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// answerSeconds bounds how long the kernel is waited for, which answers at once.
const answerSeconds = 10

// sockets are the Host's connections to the kernel, opened when first needed. They
// are kept because closing one to the packet filter makes the kernel wait, for ten
// milliseconds or so, until it has freed what was last removed, and everybody
// else's changes wait with it.
type sockets struct {
	mu    sync.Mutex // held for a whole transaction: the connection buffers it
	rules *nftables.Conn
	// others are for all but rules, by netlink protocol.
	others map[int]*nl.SocketHandle
}

// change runs f with the connection to nftables. No two run at once.
func (s *sockets) change(f func(*nftables.Conn) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rules == nil {
		conn, err := openRules()
		if err != nil {
			return err
		}
		s.rules = conn
	}
	err := f(s.rules)
	if errors.Is(err, unix.ENOBUFS) {
		// Answers were lost. Those that were not must not be taken for the next one's.
		err = errors.Join(err, s.rules.CloseLasting())
		s.rules = nil
	}
	return err
}

// openRules opens a lasting connection to nftables.
func openRules() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(checkDescriptor), nftables.WithSockOptions(enlarge))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return conn, nil
}

// selectLimit is the first descriptor that package nftables cannot wait for, which calls select(2)
// and would end the program.
const selectLimit = unix.FD_SETSIZE

// errManyFiles is why a process cannot use nftables any more.
var errManyFiles = fmt.Errorf("this process has more than %d files open, of VMs or its own", selectLimit)

// checkDescriptor closes and refuses a connection that could not be used.
func checkDescriptor[C interface {
	SyscallConn() (syscall.RawConn, error)
	Close() error
}](conn C) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	usable := false
	err = raw.Control(func(fd uintptr) { usable = fd < selectLimit })
	if err == nil && !usable {
		err = errors.Join(errManyFiles, conn.Close())
	}
	return err
}

// A transaction must fit into the buffer that it is sent from: this is enough for every
// port of both protocols. A process that is root only in a user namespace of its own
// gets no more than the system lets everybody have, by default enough for some 2,700
// forwards at once. Answers are listings, and errors with what they are about.
const (
	sendBuffer    = 32 << 20
	receiveBuffer = 8 << 20
)

// enlarge makes room. Its argument is the connection beneath nftables'.
func enlarge[C interface {
	SetWriteBuffer(bytes int) error
	SetReadBuffer(bytes int) error
}](conn C) error {
	return errors.Join(conn.SetWriteBuffer(sendBuffer), conn.SetReadBuffer(receiveBuffer))
}

// request begins a request to the kernel, by netlink protocol and message type.
func (s *sockets) request(protocol, kind, flags int) (*nl.NetlinkRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.others == nil {
		if err := s.openOthers(); err != nil {
			return nil, fmt.Errorf("open netlink socket: %w", err)
		}
	}
	if s.others[protocol] == nil {
		return nil, fmt.Errorf("netlink protocol %d: %w", protocol, unix.EPROTONOSUPPORT)
	}
	r := nl.NewNetlinkRequest(kind, flags)
	r.Sockets = s.others
	return r, nil
}

// openOthers opens them all, so that a Host's open files are as many after its first
// forward as after any. What the kernel lacks is left out.
func (s *sockets) openOthers() error {
	others := make(map[int]*nl.SocketHandle)
	for _, protocol := range []int{unix.NETLINK_NETFILTER, unix.NETLINK_INET_DIAG} {
		socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), protocol)
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			continue
		}
		if err == nil {
			others[protocol] = &nl.SocketHandle{Socket: socket}
			err = socket.SetReceiveTimeout(&unix.Timeval{Sec: answerSeconds})
		}
		if err != nil {
			for _, handle := range others {
				handle.Close()
			}
			return err
		}
	}
	s.others = others
	return nil
}

// Close closes what the Host keeps open, and ends the watch over its Interfaces, which
// stay. It disturbs nobody; a Host that is used again opens it again.
func (h *Host) Close() error {
	h.reconciler.close()
	h.flusher.done.Wait()
	s := &h.sockets
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, handle := range s.others {
		handle.Close()
	}
	s.others = nil
	if s.rules == nil {
		return nil
	}
	err := s.rules.CloseLasting()
	s.rules = nil
	return err
}
