package network

import (
	"fmt"
	"sync"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
)

// watchDelay gathers what belongs together: a firewall is reloaded in many steps.
const watchDelay = 50 * time.Millisecond

// firewall is what else this host does with packets.
type firewall struct{ host *Host }

// Firewall returns the rest of the host's packet filter. Of it, legacy iptables tells
// nobody when it changes and cannot be traced; iptables of today is nftables.
func (h *Host) Firewall() forward.Firewall { return firewall{h} }

// Watch implements forward.Firewall. It listens to nftables, but for the comings and goings
// of forwards, and to the interfaces, addresses and routes that guests are reached by.
func (f firewall) Watch(changed func()) (stop func(), err error) {
	r := &f.host.reconciler
	release, err := r.begin(f.host)
	if err != nil {
		return nil, fmt.Errorf("watch the host's firewall: %w", err)
	}
	w := &watch{pending: make(chan struct{}, 1), ended: make(chan struct{})}
	var done sync.WaitGroup
	done.Go(func() { w.run(changed) })
	r.mu.Lock()
	if r.watches == nil {
		r.watches = make(map[*watch]bool)
	}
	r.watches[w] = true
	r.mu.Unlock()
	return sync.OnceFunc(func() {
		r.mu.Lock()
		delete(r.watches, w)
		r.mu.Unlock()
		close(w.ended)
		done.Wait()
		release()
	}), nil
}

// watch is one caller of Watch.
type watch struct {
	pending chan struct{} // has one if there is something to tell
	ended   chan struct{}
}

// notify has the caller told soon.
func (w *watch) notify() {
	select {
	case w.pending <- struct{}{}:
	default:
	}
}

func (w *watch) run(changed func()) {
	for {
		select {
		case <-w.ended:
			return
		case <-w.pending:
		}
		select {
		case <-w.ended:
			return
		case <-time.After(watchDelay):
		}
		select {
		case <-w.pending:
		default:
		}
		changed()
	}
}
