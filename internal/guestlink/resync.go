package guestlink

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// ErrProtocol is wrapped by errors about a guest that booted with another version of SmolVM.
var ErrProtocol = errors.New("the guest speaks another version's language")

// How often a Hello is repeated until the guest answers. A guest that still boots
// finds all of them waiting.
const (
	helloFast = 100 * time.Millisecond
	helloSlow = time.Second
)

// resync begins a session on conn and returns the connection to have it over. See
// guestapi.Frame for how. Deadlines on conn are how ctx ends it.
func resync(ctx context.Context, conn net.Conn) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	nonce, in, err := greet(conn)
	if err == nil {
		_, err = conn.Write(guestapi.Frame{Kind: guestapi.FrameGo, Nonce: nonce}.Append(nil))
	}
	if err == nil {
		_, err = in.await(guestapi.FrameReady, nonce)
	}
	if err != nil {
		return nil, failedSession(ctx, err)
	}
	return &resyncedConn{Conn: conn, early: in.unread, mask: guestapi.NewMask(nonce)}, nil
}

// AwaitIdle waits until the guest has ended all that earlier sessions began, and waits for
// another one. It closes conn.
func AwaitIdle(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	// A guest answers when it waits, and goes on waiting if it is told nothing more.
	if _, _, err := greet(conn); err != nil {
		return failedSession(ctx, err)
	}
	return nil
}

func failedSession(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("begin session: %w", err)
}

// greet has the guest answer a Hello, the nonce of which it returns.
func greet(conn net.Conn) (nonce [16]byte, in *frameReader, err error) {
	hello := guestapi.Frame{Kind: guestapi.FrameHello}
	rand.Read(hello.Nonce[:]) // never fails
	rand.Read(hello.Entropy[:])

	answered := make(chan struct{})
	repeated := make(chan error, 1)
	go func() { repeated <- repeatHello(conn, hello.Append(nil), answered) }()
	in = &frameReader{conn: conn}
	echo, readErr := in.await(guestapi.FrameEcho, hello.Nonce)
	if readErr == nil && echo.Protocol() != guestapi.Protocol {
		readErr = fmt.Errorf("%w: it speaks version %d, and this is version %d: stop the VM and start it again",
			ErrProtocol, echo.Protocol(), guestapi.Protocol)
	}
	if readErr != nil {
		// The writer may wait for a guest that reads nothing.
		_ = conn.SetWriteDeadline(time.Unix(1, 0))
	}
	close(answered)
	if writeErr := <-repeated; readErr == nil {
		readErr = writeErr
	}
	return hello.Nonce, in, readErr
}

func repeatHello(conn net.Conn, hello []byte, answered <-chan struct{}) error {
	interval := helloFast
	for {
		if _, err := conn.Write(hello); err != nil {
			return err
		}
		select {
		case <-answered:
			return nil
		case <-time.After(interval):
		}
		interval = min(interval*3/2, helloSlow)
	}
}

// frameReader reads frames.
type frameReader struct {
	conn    net.Conn
	scanner guestapi.Scanner
	buf     [4096]byte
	unread  []byte // part of buf
}

// await drops everything up to the end of the wanted frame, which it returns.
func (r *frameReader) await(kind guestapi.FrameKind, nonce [16]byte) (guestapi.Frame, error) {
	for {
		n, f, ok := r.scanner.Scan(r.unread)
		r.unread = r.unread[n:]
		if ok && f.Kind == kind && f.Nonce == nonce {
			return f, nil
		}
		if len(r.unread) > 0 {
			continue
		}
		n, err := r.conn.Read(r.buf[:])
		if n == 0 && err != nil {
			return guestapi.Frame{}, err
		}
		r.unread = r.buf[:n]
	}
}

// resyncedConn is a connection of which some has been read already, and what is written to which
// is masked. Reads need not wait for writes, but there is one of each at a time.
type resyncedConn struct {
	net.Conn
	early  []byte
	mask   *guestapi.Mask
	masked []byte // the last that was written
}

func (c *resyncedConn) Write(p []byte) (int, error) {
	c.masked = slices.Grow(c.masked[:0], len(p))[:len(p)]
	c.mask.Apply(c.masked, p)
	return c.Conn.Write(c.masked)
}

func (c *resyncedConn) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}
