package network

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// settingsInterval is how often kernel settings are compared: no event tells when
	// somebody changes one. Half of the second within which all is to be mended.
	settingsInterval = 500 * time.Millisecond
	// lookShare is how many times longer than a look the pause after it is, within
	// bounds, so that looking never takes more than a small share of a processor.
	lookShare    = 10
	shortestRest = 5 * time.Millisecond
	longestRest  = 500 * time.Millisecond
	// firstRetry and lastRetry are the pauses after what could not be mended.
	firstRetry = 50 * time.Millisecond
	lastRetry  = time.Second
	// goneAfter is how long an interface is missing before it is given up.
	goneAfter = time.Second
)

// reconciler keeps what this process's guests need as it should be, against what other
// programs change. It runs while there are Interfaces or watches: woken by the
// kernel's events it takes the lock that all changes are made under, looks, and mends.
type reconciler struct {
	life   sync.Mutex // held while it starts and ends; its goroutines never take it
	users  int
	run    int // counts the starts
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu        sync.Mutex
	interests interests
	kept      []*Interface
	missing   map[*Interface]time.Time // since when, of those that are kept
	settings  []setting                // what settings were found to be when all was well
	pending   event
	wake      chan struct{} // has one if pending is not 0
	watches   map[*watch]bool
}

// begin starts the reconciler, if it does not run yet. When all who began it have
// called release, or close was called, it ends.
func (r *reconciler) begin(h *Host) (release func(), err error) {
	r.life.Lock()
	defer r.life.Unlock()
	if r.users == 0 {
		if err := r.start(h); err != nil {
			return nil, err
		}
		r.run++
	}
	r.users++
	run := r.run
	return sync.OnceFunc(func() { r.end(run) }), nil
}

func (r *reconciler) start(h *Host) error {
	rules, err := listenEvents(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return err
	}
	ways, err := listenEvents(unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE)
	if err != nil {
		return errors.Join(err, rules.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.mu.Lock()
	r.interests = interests{pool: h.pool, own: make(map[int]bool), wanted: h.wanted.has}
	r.pending, r.wake = 0, make(chan struct{}, 1)
	r.missing = make(map[*Interface]time.Time)
	r.mu.Unlock()
	r.cancel = func() {
		cancel()
		rules.interrupt()
		ways.interrupt()
	}
	r.done.Go(func() { r.listen(h, rules, (*interests).ofRules) })
	r.done.Go(func() { r.listen(h, ways, (*interests).ofWays) })
	r.done.Go(func() { r.reconcile(ctx, h) })
	return nil
}

// end takes one user off a run, which may be over already.
func (r *reconciler) end(run int) {
	r.life.Lock()
	defer r.life.Unlock()
	if run != r.run || r.users == 0 {
		return
	}
	if r.users--; r.users == 0 {
		r.stop()
	}
}

// close ends the run, whoever uses it. Watches stay, and hear no more.
func (r *reconciler) close() {
	r.life.Lock()
	defer r.life.Unlock()
	if r.users > 0 {
		r.users = 0
		r.stop()
	}
}

func (r *reconciler) stop() {
	r.cancel()
	r.done.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept, r.settings = nil, nil
}

// keep takes charge of an interface.
func (r *reconciler) keep(i *Interface) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept = append(r.kept, i)
	r.interests.own[i.Index] = true
	r.interests.egress = r.interests.egress || i.egress
	r.settings = append(r.settings, tapSettings(i.Name, i.egress)...)
	r.notice(lookEvent) // for the settings of uplinks
}

// forget gives up charge of an interface. What is being mended at the moment goes on
// until the lock is free.
func (r *reconciler) forget(i *Interface) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept = slices.DeleteFunc(slices.Clone(r.kept), func(k *Interface) bool { return k == i })
	delete(r.interests.own, i.Index)
	delete(r.missing, i)
	r.interests.egress = slices.ContainsFunc(r.kept, func(k *Interface) bool { return k.egress })
	settings := tapSettings(i.Name, i.egress)
	r.settings = slices.DeleteFunc(r.settings, func(s setting) bool { return slices.Contains(settings, s) })
}

// listen judges events until the socket is interrupted.
func (r *reconciler) listen(h *Host, socket *eventSocket, judge func(*interests, message) event) {
	defer socket.Close()
	for {
		datagram, err := socket.receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			r.mu.Lock()
			r.notice(everything)
			r.mu.Unlock()
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			return
		case err != nil:
			h.log.Error("the kernel's network events cannot be read any more", "err", err)
			return
		}
		r.mu.Lock()
		for m := range messages(datagram) {
			if e := judge(&r.interests, m); e != 0 {
				r.notice(e)
			}
		}
		r.mu.Unlock()
	}
}

// notice has an event seen to. It is called with mu held.
func (r *reconciler) notice(e event) {
	r.pending |= e & (lookEvent | corpseEvent)
	if e&(ruleEvent|wayEvent) != 0 {
		for w := range r.watches {
			w.notify()
		}
	}
	if e&lookEvent != 0 {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// reconcile looks and mends until ctx ends. A guest of somebody else's that is gone wakes nobody
// and waits for the next tick, by when its owner has mostly seen to it.
func (r *reconciler) reconcile(ctx context.Context, h *Host) {
	ticks := time.NewTicker(settingsInterval)
	defer ticks.Stop()
	complaints := make(map[string]bool)
	retry := firstRetry
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-ticks.C:
		}
		began := time.Now()
		var rest time.Duration
		switch err := r.attend(ctx, h); {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !complaints[err.Error()] {
				complaints[err.Error()] = true
				h.log.Error("the network that VMs need cannot be mended, trying on", "err", err)
			}
			rest, retry = retry, min(2*retry, lastRetry)
			r.mu.Lock()
			r.notice(lookEvent)
			r.mu.Unlock()
		default:
			clear(complaints)
			retry = firstRetry
			rest = min(max(lookShare*time.Since(began), shortestRest), longestRest)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
	}
}

// attend does what is to be done, which is as little as can be under the lock: many owners have
// the same events, and many VMs may end at once.
func (r *reconciler) attend(ctx context.Context, h *Host) error {
	switch {
	case r.has(lookEvent) || !r.settled():
		if r.bereft() {
			return nil
		}
		return r.look(ctx, h)
	case r.has(corpseEvent):
		return r.bury(ctx, h)
	}
	return nil
}

func (r *reconciler) has(e event) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pending&e != 0
}

// settled tells whether the settings are still what they were when all was well.
func (r *reconciler) settled() bool {
	r.mu.Lock()
	settings := slices.Clone(r.settings)
	r.mu.Unlock()
	for _, s := range settings {
		if good, err := s.holds(); err != nil || !good {
			return false
		}
	}
	return true
}
