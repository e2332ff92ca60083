package smolvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	// maxPool bounds how many VMs a Pool keeps.
	maxPool = 1000
	// firstPoolRetry and lastPoolRetry are the pauses after a VM that could not be started.
	firstPoolRetry = time.Second
	lastPoolRetry  = time.Minute
)

// ErrPoolClosed is returned by [Pool.Get] after [Pool.Close].
var ErrPoolClosed = errors.New("pool is closed")

// Pool keeps VMs that are alike ready for use: started, and paused, so that they take memory and
// no processor. Its methods may be called concurrently.
type Pool struct {
	opts []Option
	log  *slog.Logger

	ctx    context.Context // ends with the pool
	cancel context.CancelFunc
	done   chan struct{} // closed when nothing is started any more
	wanted chan struct{} // has one when there is room

	mu     sync.Mutex
	size   int
	ready  []*VM
	closed bool
}

// NewPool makes a pool of size VMs, 1 to 1000, which it begins to start. It does not wait for them.
// The options are those of [Launch], except that [Name], [Keep] and [Background] make no sense and fail with
// ErrInvalidOption: VMs that wait end with this program, whatever happens. The caller owes a
// [Pool.Close].
func NewPool(size int, opts ...Option) (*Pool, error) {
	c := newConfig(opts)
	switch {
	case size < 1 || size > maxPool:
		return nil, fmt.Errorf("%w: size of a pool must be 1 to %d, not %d", ErrInvalidOption, maxPool, size)
	case c.spec.Name != "" || c.spec.Keep || c.host.Background:
		return nil, fmt.Errorf("%w: VMs of a pool have no name of your choice, are not kept, and do not run in the background", ErrInvalidOption)
	}
	p := &Pool{
		opts: opts, log: c.host.Log, size: size, done: make(chan struct{}), wanted: make(chan struct{}, 1),
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.want()
	go p.fill()
	return p, nil
}

// Get returns a VM that runs, which is the caller's from then on, who owes it a [VM.Close]: one that
// waits, or if there is none, a new one. Another one takes its place in the pool. It fails with
// ErrPoolClosed, or as [Launch] does.
func (p *Pool) Get(ctx context.Context) (*VM, error) {
	for {
		vm, err := p.take()
		if err != nil {
			return nil, err
		}
		if vm == nil {
			return Launch(ctx, p.opts...)
		}
		err = vm.Resume(ctx)
		if err == nil {
			return vm, nil
		}
		// It may have ended while it waited.
		err = errors.Join(err, vm.Close())
		if ctx.Err() != nil {
			return nil, err
		}
		p.log.Warn("a VM that waited is of no use", "vm", vm.Name(), "error", err)
	}
}

// Ready tells how many VMs wait.
func (p *Pool) Ready() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ready)
}

// Close ends the pool, and the VMs that wait. Those that Get returned go on. It is idempotent.
func (p *Pool) Close() error {
	p.cancel()
	<-p.done
	p.mu.Lock()
	waiting := p.ready
	p.ready, p.closed = nil, true
	p.mu.Unlock()
	errs := make([]error, len(waiting))
	var ending sync.WaitGroup
	for i, vm := range waiting {
		ending.Go(func() { errs[i] = vm.Close() })
	}
	ending.Wait()
	return errors.Join(errs...)
}

// take takes a VM that waits, the one that has waited longest, or nil.
func (p *Pool) take() (*VM, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.ctx.Err() != nil {
		return nil, ErrPoolClosed
	}
	if len(p.ready) == 0 {
		return nil, nil
	}
	vm := p.ready[0]
	p.ready = p.ready[1:]
	p.want()
	return vm, nil
}

// want has VMs started.
func (p *Pool) want() {
	select {
	case p.wanted <- struct{}{}:
	default:
	}
}

// fill starts VMs, one after the other, while there is room, until the pool ends.
func (p *Pool) fill() {
	defer close(p.done)
	pause := firstPoolRetry
	for {
		select {
		case <-p.wanted:
		case <-p.ctx.Done():
			return
		}
		for p.Ready() < p.size && p.ctx.Err() == nil {
			vm, err := p.start()
			if err == nil {
				p.mu.Lock()
				p.ready = append(p.ready, vm)
				p.mu.Unlock()
				pause = firstPoolRetry
				continue
			}
			if p.ctx.Err() != nil {
				return
			}
			p.log.Warn("could not start a VM for the pool, trying again", "error", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-p.ctx.Done():
				return
			}
			pause = min(2*pause, lastPoolRetry)
		}
	}
}

// start makes a VM that waits. It has run a command before, so that under emulation the code for
// that is translated.
func (p *Pool) start() (*VM, error) {
	vm, err := Launch(p.ctx, p.opts...)
	if err != nil {
		return nil, err
	}
	if _, err := vm.Run(p.ctx, "true"); err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	if err := vm.Pause(p.ctx); err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	return vm, nil
}
