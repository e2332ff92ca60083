package wire

import (
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/crypto/ssh"
)

// channelConn is a channel as a connection. It has no deadlines: setting one fails with
// os.ErrNoDeadline.
type channelConn struct {
	ssh.Channel
	out io.Writer
}

// Write waits until there is room for p.
func (c *channelConn) Write(p []byte) (int, error) { return c.out.Write(p) }

func (c *channelConn) LocalAddr() net.Addr              { return channelAddr{} }
func (c *channelConn) RemoteAddr() net.Addr             { return channelAddr{} }
func (c *channelConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *channelConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *channelConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// channelAddr is where both ends of a channel are.
type channelAddr struct{}

func (channelAddr) Network() string { return "channel" }
func (channelAddr) String() string  { return "guest channel" }
