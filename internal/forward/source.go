package forward

import (
	"io"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// source is where the bytes of a connection come from.
type source interface {
	// next waits for some bytes of a stream, or for a datagram, which may be empty.
	// They are the source's: the caller owes a release before the next call, and
	// after an error too. The error is io.EOF at the orderly end of a stream.
	next() ([]byte, error)
	release()
}

// newSource reads from a connection of whatever kind.
func newSource(conn net.Conn, b *buffers) (source, error) {
	switch conn := conn.(type) {
	case *net.TCPConn:
		return newReceiver(conn, b)
	case *net.UDPConn:
		return newReceiver(conn, b)
	}
	return &reader{conn: conn, buffers: b}, nil
}

// receiver is the source for sockets. It reads from a socket into a block that it holds
// only while there is something in it: most sockets wait most of the time.
type receiver struct {
	raw     syscall.RawConn
	buffers *buffers
	attempt func(socket uintptr) bool
	stream  bool

	block *[]byte
	n     int
	from  netip.AddrPort // of a datagram, if the socket is not connected
	err   error
}

func newReceiver(socket syscall.Conn, b *buffers) (*receiver, error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &receiver{raw: raw, buffers: b}
	_, r.stream = socket.(*net.TCPConn)
	r.attempt = r.receive
	return r, nil
}

func (r *receiver) next() ([]byte, error) {
	if err := r.raw.Read(r.attempt); err != nil {
		return nil, err
	}
	if r.err != nil {
		return nil, r.err
	}
	if r.stream && r.n == 0 {
		return nil, io.EOF
	}
	return (*r.block)[:r.n], nil
}

// receive reads without waiting. It returns false if there is nothing.
func (r *receiver) receive(socket uintptr) bool {
	r.block = r.buffers.block()
	var from unix.Sockaddr
	for {
		r.n, from, r.err = unix.Recvfrom(int(socket), *r.block, unix.MSG_DONTWAIT)
		if r.err != unix.EINTR {
			break
		}
	}
	if r.err == unix.EAGAIN {
		r.release()
		return false
	}
	r.from = addrPort(from)
	return true
}

func (r *receiver) release() {
	if r.block != nil {
		r.buffers.putBlock(r.block)
		r.block = nil
	}
}

func addrPort(s unix.Sockaddr) netip.AddrPort {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr), uint16(s.Port))
	}
	return netip.AddrPort{}
}

// reader is the source for what is no socket. It cannot wait without a block.
type reader struct {
	conn    net.Conn
	buffers *buffers
	block   *[]byte
	err     error // comes after the bytes that came with it
}

func (r *reader) next() ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	r.block = r.buffers.block()
	var n int
	n, r.err = r.conn.Read(*r.block)
	if n == 0 && r.err != nil {
		return nil, r.err
	}
	return (*r.block)[:n], nil
}

func (r *reader) release() {
	if r.block != nil {
		r.buffers.putBlock(r.block)
		r.block = nil
	}
}
