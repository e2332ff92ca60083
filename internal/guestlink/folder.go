package guestlink

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// MountFolder has the guest mount a folder, and returns the connection on which its kernel asks the
// host for what is in it, in FUSE messages. That ends when the link does, or when the guest has
// ended the mount, and with it the mount ends. The error is a *RefusedError if it is the guest that
// cannot, and wraps ErrLost if the link is gone. The caller owes a Close.
func (l *Link) MountFolder(ctx context.Context, f guestapi.Folder) (io.ReadWriteCloser, error) {
	op := fmt.Sprintf("mount folder at %s in guest", f.Path)
	channel, requests, err := l.open(ctx, op, l.conn, guestapi.ChannelFolder, guestapi.Encode(&f))
	var refusal *ssh.OpenChannelError
	switch {
	case errors.As(err, &refusal):
		return nil, refused(op, []byte(refusal.Message))
	case err != nil:
		return nil, err
	}
	go ssh.DiscardRequests(requests)
	go func() { _, _ = io.Copy(io.Discard, channel.Stderr()) }()
	return &folderConn{Channel: channel, out: l.wire.Pace(channel)}, nil
}

// folderConn is a ChannelFolder.
type folderConn struct {
	ssh.Channel
	out io.Writer
}

// Write waits until there is room.
func (c *folderConn) Write(p []byte) (int, error) { return c.out.Write(p) }
