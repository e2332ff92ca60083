package network

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxDatagram is more than the kernel puts into one message to listeners.
const maxDatagram = 64 << 10

// eventSocket receives what the kernel tells those who listen to groups of netlink.
type eventSocket struct {
	file   *os.File
	raw    syscall.RawConn
	buffer []byte
}

// listenEvents opens a socket of a netlink family for groups, which count from 1. The
// caller must close it.
func listenEvents(family int, groups ...uint) (*eventSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, family)
	if err != nil {
		return nil, fmt.Errorf("listen to kernel events: %w", err)
	}
	address := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, g := range groups {
		address.Groups |= 1 << (g - 1)
	}
	if err := unix.Bind(fd, address); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen to kernel events: %w", err)
	}
	file := os.NewFile(uintptr(fd), "netlink events")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("listen to kernel events: %w", err)
	}
	return &eventSocket{file: file, raw: raw, buffer: make([]byte, maxDatagram)}, nil
}

// receive waits for a datagram, which is valid until the next call. The error is
// unix.ENOBUFS if the kernel had to leave events out, and os.ErrClosed or
// os.ErrDeadlineExceeded after the file was closed or its deadline passed.
func (s *eventSocket) receive() ([]byte, error) {
	var n int
	var err error
	wait := s.raw.Read(func(fd uintptr) bool {
		n, err = s.read(int(fd))
		return !errors.Is(err, unix.EAGAIN)
	})
	if wait != nil {
		return nil, wait
	}
	return s.buffer[:max(n, 0)], err
}

// remaining returns a datagram that is there already, or unix.EAGAIN.
func (s *eventSocket) remaining() ([]byte, error) {
	var n int
	var err error
	if e := s.raw.Control(func(fd uintptr) { n, err = s.read(int(fd)) }); e != nil {
		return nil, e
	}
	return s.buffer[:max(n, 0)], err
}

// read reads once. Only the kernel is listened to.
func (s *eventSocket) read(fd int) (int, error) {
	for {
		n, from, err := unix.Recvfrom(fd, s.buffer, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if sender, ok := from.(*unix.SockaddrNetlink); err == nil && (!ok || sender.Pid != 0) {
			continue
		}
		return n, err
	}
}

// interrupt makes receive return, now and later.
func (s *eventSocket) interrupt() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) }

func (s *eventSocket) Close() error { return s.file.Close() }
