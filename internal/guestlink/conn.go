package guestlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestapi/wire"
)

// DialError says that the guest could not connect. The link is fine.
type DialError struct {
	Address string
	Reason  string // in the guest's words
}

func (e *DialError) Error() string {
	return fmt.Sprintf("dial %s in guest: %s", e.Address, e.Reason)
}

// DialContext connects to a TCP address as the guest sees it. "localhost" means
// whichever loopback address something listens on. The error is a *DialError if
// the guest cannot connect, wraps ErrLost if the link is gone, and else is ctx's.
func (l *Link) DialContext(ctx context.Context, network, address string) (*Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, fmt.Errorf("dial %s in guest: %w", address, net.UnknownNetworkError(network))
	}
	over, channel, requests, to, err := l.dial(ctx, guestapi.ChannelDial, address)
	if err != nil {
		return nil, err
	}
	remote := net.TCPAddrFromAddrPort(to)
	return &Conn{link: l, stream: wire.NewStream(over, channel, requests, true), remote: remote}, nil
}

// DialDatagrams begins a conversation with a UDP address as the guest sees it.
// "localhost" means whichever loopback address has a socket on the port. Each Read and
// Write of the connection is one datagram. A Write does not wait: what there is no room
// for is lost, as datagrams are, and so is one that the guest cannot deliver. A Read ends
// with io.EOF when the link is lost, and after Close; what was written before Close is
// still sent. There are no deadlines: setting one fails with os.ErrNoDeadline. The errors
// are those of DialContext.
func (l *Link) DialDatagrams(ctx context.Context, address string) (net.Conn, error) {
	over, channel, requests, to, err := l.dial(ctx, guestapi.ChannelDatagrams, address)
	if err != nil {
		return nil, err
	}
	remote := net.UDPAddrFromAddrPort(to)
	return &packetConn{Datagrams: wire.NewDatagrams(over, channel, requests), remote: remote}, nil
}

// dial opens a channel of the tunnel that connects to an address, which it returns without an IP if
// it is a name.
func (l *Link) dial(ctx context.Context, kind, address string) (over *wire.Conn, channel ssh.Channel, requests <-chan *ssh.Request, to netip.AddrPort, err error) {
	op := "dial " + address + " in guest"
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, nil, nil, to, fmt.Errorf("%s: %w", op, err)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil || port == 0 {
		return nil, nil, nil, to, fmt.Errorf("%s: invalid port %q", op, service)
	}
	ip, _ := netip.ParseAddr(host)
	to = netip.AddrPortFrom(ip, uint16(port))
	t, err := l.openTunnel(ctx, op)
	if err != nil {
		return nil, nil, nil, to, err
	}
	channel, requests, err = l.open(ctx, op, t.conn, kind, ssh.Marshal(guestapi.Dial{
		Host: host, Port: uint32(port), OriginHost: "127.0.0.1",
	}))
	var refusal *ssh.OpenChannelError
	if errors.As(err, &refusal) {
		err = &DialError{Address: address, Reason: printable(refusal.Message)}
	}
	return t.wire, channel, requests, to, err
}

// Conn is a TCP connection in the guest, carried over the link. It has no
// deadlines: setting one fails with os.ErrNoDeadline.
type Conn struct {
	link   *Link
	stream *wire.Stream
	remote *net.TCPAddr
}

var _ net.Conn = (*Conn)(nil)

// Read reads what the guest's end sent. It ends with io.EOF when that has closed its
// sending direction in order. The error is syscall.ECONNRESET if the guest's end was
// reset, net.ErrClosed after Close, and wraps ErrLost if the link is lost.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.stream.Read(p)
	if err != nil && err != io.EOF {
		err = c.failed("read from guest", err)
	}
	return n, err
}

// Write sends to the guest's end. Its errors are those of Read, and syscall.EPIPE after
// CloseWrite.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.stream.Write(p)
	if err != nil {
		err = c.failed("write to guest", err)
	}
	return n, err
}

// failed says what an error of the stream means.
func (c *Conn) failed(op string, err error) error {
	if errors.Is(err, wire.ErrCut) {
		return c.link.lost(op, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

// CloseWrite ends the sending direction. It must not be called during a Write.
func (c *Conn) CloseWrite() error { return c.stream.CloseWrite() }

// SetLinger with 0 makes Close reset the connection: the guest's end sees a reset, not
// an orderly end. Any other value undoes that.
func (c *Conn) SetLinger(seconds int) error { return c.stream.SetLinger(seconds) }

// Close closes the connection. What was written before still reaches the guest's
// end. A Read or Write that waits ends once the guest has confirmed.
func (c *Conn) Close() error { return c.stream.Close() }

// LocalAddr is nothing more than a valid address: the host's end has none.
func (c *Conn) LocalAddr() net.Addr { return &net.TCPAddr{} }

// RemoteAddr is the dialed address. It has no IP if a name was dialed.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline fails with os.ErrNoDeadline.
func (c *Conn) SetDeadline(time.Time) error { return os.ErrNoDeadline }

// SetReadDeadline fails with os.ErrNoDeadline.
func (c *Conn) SetReadDeadline(time.Time) error { return os.ErrNoDeadline }

// SetWriteDeadline fails with os.ErrNoDeadline.
func (c *Conn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// packetConn is a conversation in datagrams as a net.Conn.
type packetConn struct {
	*wire.Datagrams
	remote *net.UDPAddr
}

func (c *packetConn) LocalAddr() net.Addr              { return &net.UDPAddr{} }
func (c *packetConn) RemoteAddr() net.Addr             { return c.remote }
func (c *packetConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *packetConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *packetConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
