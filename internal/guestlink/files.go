package guestlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// Files moves files into the guest or out of it. What goes in is read from in until its
// end, what comes out is written to out; nil is nothing. An error of in or out, or the end
// of ctx, stops the guest, which leaves no half of a file. The error is a *RefusedError if
// it is the guest that cannot, and wraps ErrLost if the link is gone.
//
// After Files nothing is written to out any more; a write that blocks for ever keeps it
// from returning. A Read of in that waits may outlive it, and what it reads is lost.
func (l *Link) Files(ctx context.Context, f guestapi.Files, in io.Reader, out io.Writer) error {
	op := fmt.Sprintf("%s %s in guest", f.Op, f.Path)
	payload := guestapi.Encode(&f)
	if len(payload) > guestapi.MaxPayload {
		return fmt.Errorf("%s: %w", op, unix.ENAMETOOLONG)
	}
	channel, requests, err := l.open(ctx, op, l.conn, guestapi.ChannelFiles, payload)
	var refusal *ssh.OpenChannelError
	switch {
	case errors.As(err, &refusal):
		return refused(op, []byte(refusal.Message))
	case err != nil:
		return err
	}
	t := &filesTransfer{channel: channel}
	t.out, _ = writers(out, nil)
	return t.run(ctx, l, op, requests, in)
}

// filesTransfer is a ChannelFiles.
type filesTransfer struct {
	channel ssh.Channel
	out     *gate

	mu    sync.Mutex
	inErr error // of in
}

// run carries the data until the guest has said how it went.
func (t *filesTransfer) run(ctx context.Context, l *Link, op string, requests <-chan *ssh.Request, in io.Reader) error {
	defer t.channel.Close()
	go t.send(l, in) // nobody waits for this one: the reader may never end
	var copying sync.WaitGroup
	copying.Go(func() {
		if _, err := io.Copy(t.out, t.channel); err != nil {
			t.channel.Close() // nobody wants the rest
		}
	})
	go func() { _, _ = io.Copy(io.Discard, t.channel.Stderr()) }()
	ended := make(chan struct{})
	var result *[]byte
	go func() {
		defer close(ended)
		for req := range requests {
			if req.Type == guestapi.RequestFilesDone && result == nil {
				result = &req.Payload
			}
			_ = req.Reply(false, nil)
		}
		copying.Wait()
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		t.channel.Close()
		_ = t.out.shut()
		return fmt.Errorf("%s: %w", op, ctx.Err())
	}
	outErr := t.out.shut()
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case outErr != nil:
		return fmt.Errorf("%s: write what comes out: %w", op, outErr)
	case t.inErr != nil:
		return fmt.Errorf("%s: read what goes in: %w", op, t.inErr)
	case result == nil:
		return l.lost(op, errors.New("it ended without a word"))
	case len(*result) > 0:
		return refused(op, *result)
	}
	return nil
}

// send sends what there is in in. It closes the channel if in fails: then the guest breaks
// off.
func (t *filesTransfer) send(l *Link, in io.Reader) {
	if in != nil {
		from := &source{Reader: in}
		_, err := io.CopyBuffer(l.wire.Pace(t.channel), from, make([]byte, 64<<10))
		if from.err != nil {
			t.mu.Lock()
			t.inErr = from.err
			t.mu.Unlock()
			t.channel.Close()
		}
		if err != nil {
			return // the guest has ended, and said why
		}
	}
	_, _ = t.channel.SendRequest(guestapi.RequestEnd, false, nil)
	_ = t.channel.CloseWrite()
}

// source is a reader that remembers how it failed.
type source struct {
	io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// Files is Link.Files. Nothing is ever done twice: what is under way when the link is lost
// fails.
func (c *Channel) Files(ctx context.Context, f guestapi.Files, in io.Reader, out io.Writer) error {
	link, err := c.Link(ctx)
	if err != nil {
		return err
	}
	return link.Files(ctx, f, in, out)
}
