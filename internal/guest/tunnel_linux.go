package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// dialTimeout bounds how long the guest tries to connect for a tunnel.
const dialTimeout = 30 * time.Second

// tunnel serves a "direct-tcpip" channel.
func (s *Server) tunnel(ctx context.Context, open ssh.NewChannel) {
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
	splice(channel, requests, conn)
}

// dial connects to a tunnel's target. For localhost it tries both loopback
// addresses: the caller does not know on which one the guest's server listens.
func dial(ctx context.Context, to guestapi.Dial) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	hosts := []string{to.Host}
	if to.Host == "localhost" {
		hosts = []string{"127.0.0.1", "::1"}
	}
	var d net.Dialer
	var first error
	for _, host := range hosts {
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(to.Port))))
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		if first == nil {
			first = err
		}
	}
	var op *net.OpError
	if errors.As(first, &op) {
		first = op.Err // the address is the caller's own
	}
	return nil, fmt.Errorf("connect: %w", first)
}

// splice carries bytes both ways. The end of one direction is passed on alone; an
// error in either ends both. It returns, with both ends closed, once all is done.
func splice(channel ssh.Channel, requests <-chan *ssh.Request, conn *net.TCPConn) {
	defer channel.Close()
	defer conn.Close()
	var up, down sync.WaitGroup
	carry := func(to, from interface {
		io.ReadWriteCloser
		CloseWrite() error
	}) {
		// Neither end's own way of copying is wanted: it would be the slower one.
		_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 32<<10))
		if err == nil {
			err = to.CloseWrite()
		}
		if err != nil {
			channel.Close()
			conn.Close()
		}
	}
	up.Go(func() { carry(conn, channel) })
	down.Go(func() { carry(channel, conn) })
	// The requests end when the host closes the channel altogether. What it sent
	// before still arrives; an answer has nowhere to go.
	ssh.DiscardRequests(requests)
	up.Wait()
	conn.Close()
	down.Wait()
}
