package guestlink

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The defaults of KeepAlive. The guest shares a processor with others, and its
// emulation may be slow: only a long silence means anything.
const (
	PingEvery   = 15 * time.Second
	PingTimeout = 45 * time.Second
)

// keepAlive is how a silent link is found to be dead.
type keepAlive struct {
	every   time.Duration // zero: not at all
	timeout time.Duration
}

// KeepAlive sets how often the guest is asked for a sign of life, and after which
// wait for one the link ends. A zero every turns it off, as a paused guest needs.
// Calling KeepAlive begins anew.
func (l *Link) KeepAlive(every, timeout time.Duration) {
	select {
	case l.keepAlive <- keepAlive{every, timeout}:
	case <-l.done:
	}
}

// keep keeps the link alive until it ends.
func (l *Link) keep(k keepAlive) {
	for ok := true; ok; {
		k, ok = l.keepWith(k)
	}
}

// keepWith does so until k is to change. It returns false when the link has ended.
func (l *Link) keepWith(k keepAlive) (next keepAlive, ok bool) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if k.every > 0 {
		go l.pingAll(ctx, k)
	}
	select {
	case next = <-l.keepAlive:
		return next, true
	case <-l.done:
		return k, false
	}
}

// pingAll pings the guest again and again until ctx ends.
func (l *Link) pingAll(ctx context.Context, k keepAlive) {
	next := time.NewTicker(k.every)
	defer next.Stop()
	for {
		select {
		case <-next.C:
		case <-ctx.Done():
			return
		}
		ping, cancel := context.WithTimeout(ctx, k.timeout)
		err := l.Ping(ping)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			l.log.Warn("the guest does not answer", "timeout", k.timeout)
			l.end(fmt.Errorf("no answer within %v", k.timeout))
			return
		}
	}
}
