package guest

import (
	"context"
	"crypto/ed25519"
	"fmt"

	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi/wire"
)

// sshTunnel serves a guestapi.ChannelSSH: an SSH connection within the host's session, which needs
// no authentication as that needs none.
func (s *Server) sshTunnel(ctx context.Context, p *peer, open ssh.NewChannel) {
	channel, requests, err := open.Accept()
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	conn := wire.NewInner(p.conn, channel)
	defer conn.Close()
	err = s.serveTunnel(ctx, conn)
	if err != nil {
		s.log.Warn("the host's SSH tunnel failed", "error", err)
	}
}

func (s *Server) serveTunnel(ctx context.Context, conn *wire.Conn) error {
	// Nobody needs to know this key again.
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return fmt.Errorf("make SSH key: %w", err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return fmt.Errorf("make SSH key: %w", err)
	}
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(signer)
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return err
	}
	go ssh.DiscardRequests(requests)
	s.serveChannels(ctx, &peer{conn: conn, host: true}, channels)
	return nil
}
