package guestlink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi"
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
	op := "dial " + address + " in guest"
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, fmt.Errorf("%s: %w", op, net.UnknownNetworkError(network))
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("%s: invalid port %q", op, service)
	}
	channel, requests, err := l.open(ctx, op, guestapi.ChannelDial, ssh.Marshal(guestapi.Dial{
		Host: host, Port: uint32(port), OriginHost: "127.0.0.1",
	}))
	var refusal *ssh.OpenChannelError
	switch {
	case errors.As(err, &refusal):
		return nil, &DialError{Address: address, Reason: refusal.Message}
	case err != nil:
		return nil, err
	}
	go ssh.DiscardRequests(requests)
	remote := &net.TCPAddr{Port: int(port)}
	if ip, err := netip.ParseAddr(host); err == nil {
		remote.IP = ip.AsSlice()
	}
	return &Conn{channel: channel, remote: remote}, nil
}

// Conn is a TCP connection in the guest, carried over the link. It has no
// deadlines: setting one fails with os.ErrNoDeadline.
type Conn struct {
	channel ssh.Channel
	remote  *net.TCPAddr
}

var _ net.Conn = (*Conn)(nil)

// Read reads what the guest's end sent. It ends with io.EOF when that has closed
// its sending direction, or when the link is lost.
func (c *Conn) Read(p []byte) (int, error) { return c.channel.Read(p) }

// Write sends to the guest's end.
func (c *Conn) Write(p []byte) (int, error) { return c.channel.Write(p) }

// CloseWrite ends the sending direction. It must not be called during a Write.
func (c *Conn) CloseWrite() error { return c.channel.CloseWrite() }

// Close closes the connection. What was written before still reaches the guest's
// end. A Read that waits ends once the guest has confirmed.
func (c *Conn) Close() error { return c.channel.Close() }

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
