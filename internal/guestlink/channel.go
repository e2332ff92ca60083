package guestlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/timing"
)

const (
	// The pause before another attempt to get a new Link grows from the first to the
	// last of these.
	firstRedialPause = 10 * time.Millisecond
	lastRedialPause  = time.Second
	// redialTimeout bounds one attempt. A busy guest may need a while, but a
	// connection that nobody serves needs another attempt.
	redialTimeout = 30 * time.Second
)

var (
	// errMachineEnded ends a Channel.
	errMachineEnded = errors.New("the guest's machine has ended")
	// errNotYet is why a Channel is lost that Reopen made.
	errNotYet = errors.New("not connected yet")
)

// ChannelConfig is what a Channel is made with.
type ChannelConfig struct {
	// Dial connects to the guest's port.
	Dial func(context.Context) (net.Conn, error)
	// Prepare makes each new Link ready for use, such as by Configure, before anybody
	// else has it. If it fails, so does the attempt.
	Prepare func(context.Context, *Link) error
	// Ended is closed when the guest's machine has ended: then there is nothing to
	// connect to any more.
	Ended <-chan struct{}
	// Emulated tells that the guest's processor is, so that its instructions for AES, which it
	// claims to have, are slow.
	Emulated bool
	Log      *slog.Logger
}

// State is how a Channel is.
type State struct {
	Up  bool
	Err error // why it is not up; it wraps ErrLost
}

// Channel is the guest channel for as long as the guest's machine runs: one Link after
// another, the next one made as soon as one is lost. Its methods may be called
// concurrently. All of them wait while there is no Link, until their context or the
// machine ends.
type Channel struct {
	cfg    ChannelConfig
	ctx    context.Context // ends with the channel
	cancel context.CancelCauseFunc
	ended  chan struct{} // closed when nothing of it is left

	listeners latest[guestapi.Listeners]
	states    latest[State]

	mu        sync.Mutex
	link      *Link         // nil: lost
	err       error         // why it is lost; it wraps ErrLost
	changed   chan struct{} // closed and replaced when link changes
	keepAlive keepAlive
	ending    bool // the guest powers off
}

// Open makes a Channel once the guest answers. An attempt that fails is not repeated
// here: the guest waits for the host, and not the other way round. The caller owes a
// Close.
func Open(ctx context.Context, cfg ChannelConfig) (*Channel, error) {
	c := newChannel(context.WithoutCancel(ctx), cfg)
	link, reports, err := c.dial(ctx)
	if err != nil {
		if cause := context.Cause(c.ctx); cause != nil {
			err = errors.Join(cause, err)
		}
		c.cancel(err)
		return nil, err
	}
	c.set(link, nil)
	go c.run(link, reports)
	return c, nil
}

// Reopen makes a Channel to a guest that another process had one to before. It begins as
// lost and connects by itself, without waiting for a guest that may be paused. The caller
// owes a Close.
func Reopen(cfg ChannelConfig) *Channel {
	c := newChannel(context.Background(), cfg)
	c.set(nil, fmt.Errorf("%w: %w", ErrLost, errNotYet))
	go c.run(nil, nil)
	return c
}

// newChannel makes a channel that does not run yet.
func newChannel(ctx context.Context, cfg ChannelConfig) *Channel {
	c := &Channel{cfg: cfg, ended: make(chan struct{}), changed: make(chan struct{}), keepAlive: keepAlive{PingEvery, PingTimeout}}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	go func() {
		select {
		case <-cfg.Ended:
			c.cancel(errMachineEnded)
		case <-c.ctx.Done():
		}
	}()
	return c
}

// Close ends the channel and waits until it has ended. It is idempotent.
func (c *Channel) Close() error {
	c.cancel(net.ErrClosed)
	<-c.ended
	return nil
}

// run keeps the channel up until it ends. It begins with a link, or with none yet.
func (c *Channel) run(link *Link, reports <-chan guestapi.Listeners) {
	defer close(c.ended)
	defer c.states.close()
	defer c.listeners.close()
	lost := errNotYet
	for {
		if link != nil {
			c.follow(link, reports)
			lost = link.Err()
			c.set(nil, lost)
			if c.ctx.Err() != nil || c.isEnding() {
				return
			}
		}
		var err error
		if link, reports, err = c.redial(lost); err != nil {
			c.set(nil, fmt.Errorf("%w: %w", ErrLost, err))
			return
		}
		c.set(link, nil)
		if !errors.Is(lost, errNotYet) {
			c.cfg.Log.Warn("the guest channel was lost, and is back", "error", lost)
		}
	}
}

// follow hands the reports of a link on until the link has ended, and ends it when
// the channel does.
func (c *Channel) follow(link *Link, reports <-chan guestapi.Listeners) {
	stop := context.AfterFunc(c.ctx, func() { link.end(context.Cause(c.ctx)) })
	defer stop()
	for report := range reports {
		c.listeners.set(report)
	}
	<-link.Done()
}

// redial makes a new link, however many attempts that takes. It fails when the channel
// ends, as it mostly does soon: a machine that ends breaks the channel first. Only what
// lasts is worth a word.
func (c *Channel) redial(lost error) (*Link, <-chan guestapi.Listeners, error) {
	pause := firstRedialPause
	for {
		attempt, cancel := context.WithTimeout(c.ctx, redialTimeout)
		link, reports, err := c.dial(attempt)
		cancel()
		if err == nil {
			return link, reports, nil
		}
		c.cfg.Log.Debug("could not connect to the guest", "error", err, "pause", pause)
		select {
		case <-time.After(pause):
			if pause < lastRedialPause && 2*pause >= lastRedialPause {
				c.cfg.Log.Warn("the guest channel is lost, connecting again", "error", lost)
			}
			pause = min(2*pause, lastRedialPause)
		case <-c.ctx.Done():
			return nil, nil, context.Cause(c.ctx)
		}
	}
}

// dial makes one attempt at a new link, which ends when ctx does.
func (c *Channel) dial(ctx context.Context) (_ *Link, _ <-chan guestapi.Listeners, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	conn, err := c.cfg.Dial(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to guest: %w", err)
	}
	link, err := begin(ctx, conn, c.cfg.Log, c.cfg.Emulated)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { link.end(ctx.Err()) })
	err = c.cfg.Prepare(ctx, link)
	timing.End(ctx, "identity")
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, nil, errors.Join(err, link.Close())
	}
	return link, link.Listeners(c.ctx), nil // the reports outlive the attempt
}

// set notes the link there is now, or why there is none.
func (c *Channel) set(link *Link, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if link != nil {
		link.KeepAlive(c.keepAlive.every, c.keepAlive.timeout)
	}
	c.link, c.err = link, err
	close(c.changed)
	c.changed = make(chan struct{})
	c.states.set(State{Up: link != nil, Err: err})
}

// KeepAlive is Link.KeepAlive for the present link and all that follow.
func (c *Channel) KeepAlive(every, timeout time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keepAlive = keepAlive{every, timeout}
	if c.link != nil {
		c.link.KeepAlive(every, timeout)
	}
}

// States tells how the channel is, now and whenever that changes. The Go channel holds
// the newest state only. It is closed when ctx or the guest channel ends.
func (c *Channel) States(ctx context.Context) <-chan State { return c.states.subscribe(ctx) }

// Listeners is Link.Listeners, continued from link to link.
func (c *Channel) Listeners(ctx context.Context) <-chan guestapi.Listeners {
	return c.listeners.subscribe(ctx)
}

// Link returns the present link. The error wraps ErrLost when there is none and the
// wait for one ends.
func (c *Channel) Link(ctx context.Context) (*Link, error) {
	for {
		c.mu.Lock()
		link, lost, changed := c.link, c.err, c.changed
		c.mu.Unlock()
		if link != nil && !isDone(link.Done()) {
			return link, nil
		}
		if link != nil {
			lost = link.Err()
		}
		select {
		case <-changed:
		case <-c.ended:
			c.mu.Lock()
			defer c.mu.Unlock()
			return nil, c.err
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the guest channel: %w: %w", ctx.Err(), lost)
		}
	}
}

// DialContext is Link.DialContext. It is tried again when the link is lost meanwhile.
func (c *Channel) DialContext(ctx context.Context, network, address string) (*Conn, error) {
	return again(ctx, c, func(l *Link) (*Conn, error) { return l.DialContext(ctx, network, address) })
}

// DialDatagrams is Link.DialDatagrams. It is tried again when the link is lost meanwhile.
func (c *Channel) DialDatagrams(ctx context.Context, address string) (net.Conn, error) {
	return again(ctx, c, func(l *Link) (net.Conn, error) { return l.DialDatagrams(ctx, address) })
}

// again does what does no harm if it is done twice, over one link after the other, until
// it is not the link that it fails for.
func again[T any](ctx context.Context, c *Channel, do func(*Link) (T, error)) (T, error) {
	for {
		var done T
		link, err := c.Link(ctx)
		if err == nil {
			done, err = do(link)
			if errors.Is(err, ErrLost) && ctx.Err() == nil {
				<-link.Done() // it is about to end
				continue
			}
		}
		return done, err
	}
}

// Start is Link.Start. A command is never started twice: one whose link is lost is lost.
func (c *Channel) Start(ctx context.Context, e guestapi.Exec, stdin io.Reader, stdout, stderr io.Writer) (*Process, error) {
	link, err := c.Link(ctx)
	if err != nil {
		return nil, err
	}
	return link.Start(ctx, e, stdin, stdout, stderr)
}

// SyncClock is Link.SyncClock.
func (c *Channel) SyncClock(ctx context.Context) error {
	link, err := c.Link(ctx)
	if err != nil {
		return err
	}
	return link.SyncClock(ctx)
}

// Sync is Link.Sync.
func (c *Channel) Sync(ctx context.Context) error {
	link, err := c.Link(ctx)
	if err != nil {
		return err
	}
	return link.Sync(ctx)
}

// PowerOff is Link.PowerOff. No link follows the one that is lost by it.
func (c *Channel) PowerOff(ctx context.Context) error {
	link, err := c.Link(ctx)
	if err != nil {
		return err
	}
	c.setEnding(true) // before the guest can have ended
	if err := link.PowerOff(ctx); err != nil {
		c.setEnding(false)
		return err
	}
	return nil
}

func (c *Channel) setEnding(ending bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ending = ending
}

func (c *Channel) isEnding() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ending
}

func isDone(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}
