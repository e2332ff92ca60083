package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestapi/wire"
)

// dialTimeout bounds how long the guest tries to connect for a tunnel.
const dialTimeout = 30 * time.Second

// tunnel serves a guestapi.ChannelDial.
func (s *Server) tunnel(ctx context.Context, p *peer, open ssh.NewChannel) {
	var to guestapi.Dial
	if err := ssh.Unmarshal(open.ExtraData(), &to); err != nil || to.Port == 0 || to.Port > 65535 {
		_ = open.Reject(ssh.ConnectionFailed, "malformed address")
		return
	}
	conn, err := dial(ctx, to)
	if err != nil {
		_ = open.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	channel, requests, err := open.Accept()
	if err != nil {
		conn.Close()
		return
	}
	splice(wire.NewStream(p.conn, channel, requests, p.host), conn, &s.buffers)
}

// dial connects to a tunnel's target. For localhost it tries all addresses of the guest,
// loopback first: the caller does not know on which one the guest's server listens.
func dial(ctx context.Context, to guestapi.Dial) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	hosts := []string{to.Host}
	if to.Host == "localhost" {
		hosts = []string{"127.0.0.1", "::1"}
	}
	conn, err := dialFirst(ctx, hosts, to.Port)
	if to.Host == "localhost" && nobodyThere(err) {
		// These are looked up only now: that takes longer than a connect.
		if conn, err := dialFirst(ctx, networkAddresses(), to.Port); err == nil {
			return conn, nil
		}
	}
	if err != nil {
		return nil, connectError(err)
	}
	return conn, nil
}

// dialFirst connects to the first host where somebody is. The error is the first host's.
func dialFirst(ctx context.Context, hosts []string, port uint32) (*net.TCPConn, error) {
	first := error(unix.EADDRNOTAVAIL) // without any host
	var d net.Dialer
	for i, host := range hosts {
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		if i == 0 {
			first = err
		}
		if !nobodyThere(err) {
			break // a server was there, and did not want to
		}
	}
	return nil, first
}

// networkAddresses are the guest's own addresses but loopback's.
func networkAddresses() []string {
	var hosts []string
	addrs, _ := net.InterfaceAddrs() // without them, loopback was all there is
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			hosts = append(hosts, n.IP.String())
		}
	}
	return hosts
}

// nobodyThere tells whether a connect failed because nothing listens, or there is no
// such address.
func nobodyThere(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EADDRNOTAVAIL) ||
		errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.ENETUNREACH)
}

// connectError leaves out of a failed connect the address, which is the caller's own.
func connectError(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	return fmt.Errorf("connect: %w", err)
}

// splice carries bytes both ways. The end of one direction is passed on alone; a reset
// of either end resets the other one. It returns, with both ends closed, once all is done.
func splice(host *wire.Stream, conn *net.TCPConn, buffers *wire.Buffers) {
	defer host.Close()
	defer conn.Close()
	var up, down sync.WaitGroup
	up.Go(func() { carry(conn, host, buffers) })
	down.Go(func() { carry(host, conn, buffers) })
	// The host closes the stream once it has no more to say or to hear. What it sent
	// before still arrives; an answer has nowhere to go. Other SSH clients wait until this
	// end closes it.
	ended := make(chan struct{})
	go func() {
		up.Wait()
		down.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-host.Over():
		if host.Cut() {
			abort(conn)
		}
	case <-host.WasReset():
		abort(conn)
	}
	up.Wait()
	conn.Close()
	down.Wait()
}

// end is one end of a tunnel.
type end interface {
	io.ReadWriteCloser
	CloseWrite() error
	SetLinger(seconds int) error
}

// carry carries bytes until from ends, and ends to likewise.
func carry(to, from end, buffers *wire.Buffers) {
	if err := buffers.Copy(to, from); err == nil {
		// It fails if that end is gone. Then the other direction notices, too.
		_ = to.CloseWrite()
		return
	}
	abort(to)
	abort(from)
}

// abort resets an end.
func abort(e end) {
	_ = e.SetLinger(0) // it fails if the end is closed
	e.Close()
}
