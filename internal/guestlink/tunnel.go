package guestlink

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestapi/wire"
)

// opener opens channels in the guest.
type opener interface {
	OpenChannel(kind string, payload []byte) (ssh.Channel, <-chan *ssh.Request, error)
}

// tunnel is an SSH connection within the link's session. It carries connections into the guest, a
// channel each.
type tunnel struct {
	conn ssh.Conn
	wire *wire.Conn // what conn runs over
}

// ciphers are the ciphers in order of preference.
func (l *Link) ciphers() []string {
	if l.emulated {
		return []string{ssh.CipherChaCha20Poly1305}
	}
	// The guest leaves out AES if its processor has no instructions for it.
	return []string{ssh.CipherAES128GCM, ssh.CipherChaCha20Poly1305}
}

// openTunnel returns the link's tunnel, which is made for the first connection: what runs commands
// only need not wait for it. It lasts as long as the link, and the link as long as it.
func (l *Link) openTunnel(ctx context.Context, op string) (*tunnel, error) {
	select {
	case l.tunnelling <- struct{}{}:
		defer func() { <-l.tunnelling }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", op, ctx.Err())
	case <-l.done:
		return nil, l.lost(op, nil)
	}
	if l.tunnel != nil {
		return l.tunnel, nil
	}
	channel, requests, err := l.open(ctx, op, l.conn, guestapi.ChannelSSH, nil)
	if err != nil {
		return nil, err
	}
	go ssh.DiscardRequests(requests)
	over := wire.NewInner(l.wire, channel)
	stop := context.AfterFunc(ctx, func() { _ = channel.Close() }) // how it closes says nothing
	conn, channels, tells, err := ssh.NewClientConn(over, "guest", &ssh.ClientConfig{
		User: "root",
		Config: ssh.Config{
			KeyExchanges: []string{ssh.KeyExchangeCurve25519},
			Ciphers:      l.ciphers(),
		},
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
		// Any key will do: the session leads to this very virtual machine and nowhere else.
		HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	switch stopped := stop(); {
	case err == nil && !stopped:
		err = ctx.Err()
		_ = conn.Close()
	case err != nil && !stopped:
		err = ctx.Err()
	case err != nil:
		err = l.lost(op, err)
		l.end(err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: begin SSH tunnel: %w", op, err), over.Close())
	}
	go ssh.DiscardRequests(tells)
	go func() {
		for c := range channels {
			_ = c.Reject(ssh.Prohibited, "the guest may not open channels")
		}
	}()
	go func() {
		err := conn.Wait()
		_ = over.Close() // it is of no more use
		l.end(fmt.Errorf("the SSH tunnel ended: %w", err))
	}()
	l.tunnel = &tunnel{conn, over}
	return l.tunnel, nil
}
