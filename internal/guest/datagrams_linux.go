package guest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestapi/wire"
)

// datagrams serves a guestapi.ChannelDatagrams, until the host closes it.
func (s *Server) datagrams(ctx context.Context, p *peer, open ssh.NewChannel) {
	var to guestapi.Dial
	if err := ssh.Unmarshal(open.ExtraData(), &to); err != nil || to.Port == 0 || to.Port > 65535 {
		_ = open.Reject(ssh.ConnectionFailed, "malformed address")
		return
	}
	host := to.Host
	if host == "localhost" {
		host = s.datagramLoopback(uint16(to.Port))
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", net.JoinHostPort(host, strconv.Itoa(int(to.Port))))
	if err != nil {
		_ = open.Reject(ssh.ConnectionFailed, connectError(err).Error())
		return
	}
	defer conn.Close()
	channel, requests, err := open.Accept()
	if err != nil {
		return
	}
	exchange(wire.NewDatagrams(p.conn, channel, requests), conn)
}

// exchange passes datagrams on both ways until the host ends.
func exchange(host *wire.Datagrams, conn net.Conn) {
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		pass(host, conn)
	}()
	pass(conn, host)
	conn.Close()
	<-answered
	host.Close()
}

// pass passes datagrams on until from ends. What goes wrong with one of them, such as
// a port that nobody has yet, ends nothing: it is lost, as datagrams are.
func pass(to, from interface {
	Read([]byte) (int, error)
	Write([]byte) (int, error)
}) {
	buf := make([]byte, wire.MaxDatagram)
	for {
		n, err := from.Read(buf)
		switch {
		case err == nil:
			_, _ = to.Write(buf[:n])
		case !isRefusal(err):
			return
		}
	}
}

// isRefusal reports whether an error of a UDP socket tells what became of an earlier
// datagram: the network's answer to it.
func isRefusal(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && !errors.Is(err, net.ErrClosed)
}

// datagramLoopback is the loopback address whose UDP port somebody has. If nobody has it,
// that is the one of IPv4.
func (s *Server) datagramLoopback(port uint16) string {
	v4, v6 := netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()
	sockets, err := s.sockets.receivers()
	if err != nil {
		s.log.Warn("could not list the UDP sockets", "error", err)
	}
	for _, addr := range []netip.Addr{v4, v6} {
		for _, socket := range sockets {
			if socket.local.Port() == port && socket.answersAt(addr) {
				return addr.String()
			}
		}
	}
	return v4.String()
}
