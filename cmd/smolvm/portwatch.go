package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/smolvm/smolvm"
)

// lookInterval is how often it is looked for VMs that have started or ended.
const lookInterval = time.Second

// portEvent is news of a forward in the output for programs. Its field names are a contract.
type portEvent struct {
	Event string `json:"event"` // exposed, changed or unexposed
	VM    string `json:"vm"`
	smolvm.Pair
	Transport smolvm.TransportKind `json:"transport"`
	Reason    string               `json:"reason"`
	Health    smolvm.Health        `json:"health"`
}

func (e portEvent) String() string {
	text := fmt.Sprintf("%-9s %s %s  transport=%s health=%s", e.Event, e.VM, describePair(e.Pair), e.Transport, e.Health)
	if e.Reason != "" {
		text += " reason=" + fmt.Sprintf("%q", e.Reason)
	}
	return text
}

// portWatch follows the forwards of VMs, those that start later included. Each VM that runs
// tells its news itself. That is lost when its owner dies; so once in a while it is looked at
// what there really is.
type portWatch struct {
	infos  func(context.Context) ([]smolvm.Info, error)
	follow func(ctx context.Context, vm string) (iter.Seq[smolvm.ForwardEvent], error)
	named  bool // the watch ends with the VM, when it is removed

	event func(portEvent) error     // is told what happens; may be nil
	state func([]smolvm.Info) error // is told how things are, from time to time; may be nil

	news  chan portNews
	looks chan portLook

	known    map[portKey]knownPort
	followed map[string]bool // the VMs whose news come
	turn     int             // grows with each piece of news
}

// portKey is what makes a forward the same one.
type portKey struct {
	vm   string
	pair smolvm.Pair
}

// comparePortKeys orders forwards by VM and host port.
func comparePortKeys(a, b portKey) int {
	return cmp.Or(cmp.Compare(a.vm, b.vm), cmp.Compare(a.pair.HostPort, b.pair.HostPort),
		cmp.Compare(a.pair.Protocol, b.pair.Protocol), cmp.Compare(a.pair.GuestPort, b.pair.GuestPort))
}

type knownPort struct {
	event portEvent
	turn  int // when it was last heard of
}

// portNews is what a VM that runs has told, or if its event is nil, that it tells no more.
type portNews struct {
	vm    string
	event *smolvm.ForwardEvent
}

// portLook is what was found at a look, which began at that turn.
type portLook struct {
	turn  int
	infos []smolvm.Info
	err   error
}

func newPortWatch(infos func(context.Context) ([]smolvm.Info, error), follow func(context.Context, string) (iter.Seq[smolvm.ForwardEvent], error)) *portWatch {
	return &portWatch{
		infos: infos, follow: follow, news: make(chan portNews), looks: make(chan portLook),
		known: make(map[portKey]knownPort), followed: make(map[string]bool),
	}
}

// run watches until ctx ends, which is its error then.
func (w *portWatch) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	next := time.NewTimer(lookInterval)
	defer next.Stop()
	go w.look(ctx, w.turn)
	looking := true
	for first := true; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case n := <-w.news:
			if err := w.take(n); err != nil {
				return err
			}
			if w.state != nil && !looking {
				next.Reset(0)
			}
		case l := <-w.looks:
			looking = false
			next.Reset(lookInterval)
			if w.named && !first && errors.Is(l.err, smolvm.ErrNotFound) {
				return w.compare(portLook{turn: w.turn})
			}
			if l.err != nil {
				return l.err
			}
			first = false
			if err := w.compare(l); err != nil {
				return err
			}
			w.followAll(ctx, l.infos)
		case <-next.C:
			if !looking {
				looking = true
				go w.look(ctx, w.turn)
			}
		}
	}
}

// look looks at what there is.
func (w *portWatch) look(ctx context.Context, turn int) {
	infos, err := w.infos(ctx)
	select {
	case w.looks <- portLook{turn, infos, err}:
	case <-ctx.Done():
	}
}

// followAll follows the VMs that run and are not followed yet.
func (w *portWatch) followAll(ctx context.Context, infos []smolvm.Info) {
	for _, vm := range infos {
		if w.followed[vm.Name] || !runs(vm) {
			continue
		}
		w.followed[vm.Name] = true
		go func() {
			// Whatever is wrong with it, the next look will show what is left of it.
			if events, err := w.follow(ctx, vm.Name); err == nil {
				for e := range events {
					if !w.tell(ctx, portNews{vm.Name, &e}) {
						return
					}
				}
			}
			w.tell(ctx, portNews{vm: vm.Name})
		}()
	}
}

// tell hands news over, unless the watch has ended.
func (w *portWatch) tell(ctx context.Context, n portNews) bool {
	select {
	case w.news <- n:
		return true
	case <-ctx.Done():
		return false
	}
}

// take takes news in. What was known before, because a VM begins by telling all, is no event.
func (w *portWatch) take(n portNews) error {
	w.turn++
	if n.event == nil {
		delete(w.followed, n.vm)
		return nil
	}
	f := n.event.Forward
	key := portKey{n.vm, f.Pair}
	old, known := w.known[key]
	e := portEvent{string(smolvm.ForwardExposed), n.vm, f.Pair, f.Transport, f.Reason, f.Health}
	switch {
	case n.event.Kind == smolvm.ForwardUnexposed && !known:
		return nil
	case n.event.Kind == smolvm.ForwardUnexposed:
		return w.forget(key)
	case known:
		e.Event = old.event.Event
		if same := e == old.event; same {
			w.known[key] = knownPort{e, w.turn}
			return nil
		}
		e.Event = string(smolvm.ForwardChanged)
	}
	w.known[key] = knownPort{e, w.turn}
	return w.emit(e)
}

// compare forgets the forwards that are no more, though nobody told. One that was heard of
// since the look began may be younger than what was seen.
func (w *portWatch) compare(l portLook) error {
	there := make(map[portKey]bool)
	silent := make(map[string]bool)
	for _, vm := range l.infos {
		silent[vm.Name] = vm.Err != nil // nobody knows what it has
		for _, f := range vm.Forwards {
			there[portKey{vm.Name, f.Pair}] = true
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(w.known), comparePortKeys) {
		if !there[key] && !silent[key.vm] && w.known[key].turn <= l.turn {
			if err := w.forget(key); err != nil {
				return err
			}
		}
	}
	if w.state != nil {
		return w.state(l.infos)
	}
	return nil
}

// forget tells the end of a forward.
func (w *portWatch) forget(key portKey) error {
	e := w.known[key].event
	delete(w.known, key)
	e.Event = string(smolvm.ForwardUnexposed)
	return w.emit(e)
}

func (w *portWatch) emit(e portEvent) error {
	if w.event == nil {
		return nil
	}
	return w.event(e)
}
