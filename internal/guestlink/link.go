// Package guestlink is the host's side of the guest channel: sessions, one after another, over a
// byte stream that outlives them, to a guest that runs package guest.
//
// The guest is not trusted: what it says is taken as what it says, it can open
// nothing on the host, and no answer of it, or lack of one, holds the caller
// longer than the caller's context allows.
package guestlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestapi/wire"
	"github.com/smolvm/smolvm/internal/timing"
)

// ErrLost is wrapped by errors that say that the link itself is gone: closed, ended
// by the guest, or silent for too long.
var ErrLost = errors.New("guest channel lost")

// Link is a session with a guest. Its methods may be called concurrently.
type Link struct {
	conn *wire.Session
	wire *wire.Conn // what conn runs over
	log  *slog.Logger
	done chan struct{}

	requests   chan struct{} // holds a token while a global request is under way
	tunnelling chan struct{} // holds one for who looks at tunnel
	tunnel     *tunnel       // nil: none was needed yet
	emulated   bool          // the guest's processor is
	keepAlive  chan keepAlive
	listeners  latest[guestapi.Listeners]

	watch sync.Once // asks the guest to report its listeners

	mu    sync.Mutex
	cause error // why the link ended, if known better than from conn
	err   error
}

// Dial begins a session over conn, which it owns from then on. The guest may still
// be booting, or be in the middle of an older session's packet: Dial waits for it
// until ctx ends. The Link does not depend on ctx afterwards.
func Dial(ctx context.Context, conn net.Conn, log *slog.Logger) (*Link, error) {
	return begin(ctx, conn, log, false)
}

func begin(ctx context.Context, conn net.Conn, log *slog.Logger, emulated bool) (*Link, error) {
	synced, err := resync(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	timing.End(ctx, "guest") // a guest that boots answers when it has
	over := wire.NewConn(synced)
	l := &Link{
		conn:       wire.NewHost(over),
		wire:       over,
		log:        log,
		emulated:   emulated,
		done:       make(chan struct{}),
		requests:   make(chan struct{}, 1),
		tunnelling: make(chan struct{}, 1),
		keepAlive:  make(chan keepAlive),
	}
	go l.serve()
	go l.keep(keepAlive{PingEvery, PingTimeout})
	return l, nil
}

// serve handles what the guest sends by itself, until the link ends.
func (l *Link) serve() {
	for req := range l.conn.Requests() {
		if req.Type == guestapi.RequestListeners {
			l.report(req.Payload)
		}
		_ = req.Reply(false, nil)
	}
	err := l.conn.Wait()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // to nobody the end of what was to be read
	}
	l.mu.Lock()
	if l.cause == nil {
		l.cause = err
	}
	l.err = ErrLost
	if l.cause != nil {
		l.err = fmt.Errorf("%w: %w", ErrLost, l.cause)
	}
	l.mu.Unlock()
	l.listeners.close()
	close(l.done)
}

// Done is closed when the link has ended, for whatever reason.
func (l *Link) Done() <-chan struct{} { return l.done }

// Err says why the link ended, once Done is closed. It wraps ErrLost.
func (l *Link) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Close ends the link and waits until it has ended. Commands that run over it are
// killed by the guest, what they left in the background lives on.
func (l *Link) Close() error {
	l.end(net.ErrClosed)
	<-l.done
	return nil
}

// end ends the link because of cause.
func (l *Link) end(cause error) {
	l.mu.Lock()
	if l.cause == nil {
		l.cause = cause
	}
	l.mu.Unlock()
	_ = l.conn.Close() // how it closes says nothing
}

// lost is what an operation returns that failed with the link, or is about to.
func (l *Link) lost(op string, err error) error {
	select {
	case <-l.done:
		return fmt.Errorf("%s: %w", op, l.Err())
	default:
		return fmt.Errorf("%s: %w: %w", op, ErrLost, err)
	}
}

// Configure gives the guest its identity. It waits for the guest's boot to be done.
func (l *Link) Configure(ctx context.Context, id guestapi.Identity) error {
	return l.identify(ctx, "configure guest", guestapi.RequestConfigure, id)
}

// Rest has a guest without an identity get ready to be copied. It rehearses with one that means
// nothing, and waits for the guest's boot to be done.
func (l *Link) Rest(ctx context.Context, rehearsal guestapi.Identity) error {
	return l.identify(ctx, "put guest to rest", guestapi.RequestRest, rehearsal)
}

func (l *Link) identify(ctx context.Context, op, name string, id guestapi.Identity) error {
	// The guest reads its keys when it needs them, which is too late to refuse them.
	if _, _, err := id.Keys(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	_, err := l.request(ctx, op, name, guestapi.Encode(&id))
	return err
}

// Sync has the guest write out its disk.
func (l *Link) Sync(ctx context.Context) error {
	_, err := l.request(ctx, "write out guest's disk", guestapi.RequestSync, nil)
	return err
}

// PowerOff asks the guest to power off. It returns once the guest has said that it
// will; the link ends when it has.
func (l *Link) PowerOff(ctx context.Context) error {
	_, err := l.request(ctx, "power off guest", guestapi.RequestPowerOff, nil)
	return err
}

// request sends a global request and waits for the answer. The answers to these come
// in order, so there is one at a time.
func (l *Link) request(ctx context.Context, op, name string, payload []byte) (reply []byte, err error) {
	if len(payload) > guestapi.MaxPayload {
		return nil, fmt.Errorf("%s: %d bytes are more than the %d that can be sent", op, len(payload), guestapi.MaxPayload)
	}
	select {
	case l.requests <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", op, ctx.Err())
	case <-l.done:
		return nil, fmt.Errorf("%s: %w", op, l.Err())
	}
	type answer struct {
		ok      bool
		payload []byte
		err     error
	}
	answers := make(chan answer, 1)
	go func() {
		defer func() { <-l.requests }()
		ok, reply, err := l.conn.SendRequest(name, true, payload)
		answers <- answer{ok, reply, err}
	}()
	select {
	case a := <-answers:
		switch {
		case a.err != nil:
			return nil, l.lost(op, a.err)
		case !a.ok:
			return nil, refused(op, a.payload)
		}
		return a.payload, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", op, ctx.Err())
	}
}

// open opens a channel. Its error is an *ssh.OpenChannelError if the guest refused.
func (l *Link) open(ctx context.Context, op string, on opener, kind string, payload []byte) (ssh.Channel, <-chan *ssh.Request, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", op, err)
	}
	type opened struct {
		channel  ssh.Channel
		requests <-chan *ssh.Request
		err      error
	}
	result := make(chan opened, 1)
	go func() {
		channel, requests, err := on.OpenChannel(kind, payload)
		result <- opened{channel, requests, err}
	}()
	select {
	case o := <-result:
		var refusal *ssh.OpenChannelError
		if o.err != nil && !errors.As(o.err, &refusal) {
			o.err = l.lost(op, o.err)
		}
		return o.channel, o.requests, o.err
	case <-ctx.Done():
		go func() {
			if o := <-result; o.err == nil {
				go ssh.DiscardRequests(o.requests)
				o.channel.Close()
			}
		}()
		return nil, nil, fmt.Errorf("%s: %w", op, ctx.Err())
	case <-l.done:
		// A channel that is opened in the moment in which the session ends would be
		// waited for in vain.
		return nil, nil, l.lost(op, nil)
	}
}

// Ping asks the guest for a sign of life.
func (l *Link) Ping(ctx context.Context) error {
	channel, requests, err := l.open(ctx, "ping guest", l.conn, guestapi.ChannelPing, nil)
	var refusal *ssh.OpenChannelError
	switch {
	case errors.As(err, &refusal):
		return nil
	case err != nil:
		return err
	}
	go ssh.DiscardRequests(requests)
	channel.Close()
	return nil
}
