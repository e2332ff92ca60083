package machine

import (
	"context"
	"net"
	"strconv"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/guestlink"
)

// tunnel is the way into the guest over the guest channel. While the channel is lost, who
// dials waits for it to be back.
type tunnel struct{ channel *guestlink.Channel }

// DialStream implements forward.Dialer.
func (t tunnel) DialStream(ctx context.Context, guestPort uint16) (forward.Conn, error) {
	conn, err := t.channel.DialContext(ctx, "tcp", inGuest(guestPort))
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// DialDatagrams implements forward.Dialer.
func (t tunnel) DialDatagrams(ctx context.Context, guestPort uint16) (net.Conn, error) {
	return t.channel.DialDatagrams(ctx, inGuest(guestPort))
}

func inGuest(port uint16) string { return net.JoinHostPort("localhost", strconv.Itoa(int(port))) }
