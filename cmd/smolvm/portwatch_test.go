package main

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smolvm/smolvm"
)

// portWorld is VMs that a watch is told of. Its methods may be called concurrently.
type portWorld struct {
	mu      sync.Mutex
	vms     map[string]*watchedVM
	err     error
	printed []string
}

// watchedVM is one of them. It runs while it has news.
type watchedVM struct {
	info smolvm.Info
	news chan smolvm.ForwardEvent
}

func (w *portWorld) infos(context.Context) ([]smolvm.Info, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var infos []smolvm.Info
	for _, vm := range w.vms {
		info := vm.info
		info.Forwards = slices.Clone(info.Forwards)
		infos = append(infos, info)
	}
	return infos, w.err
}

func (w *portWorld) follow(ctx context.Context, name string) (iter.Seq[smolvm.ForwardEvent], error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	vm := w.vms[name]
	if vm == nil {
		return nil, smolvm.ErrNotFound
	}
	known, news := slices.Clone(vm.info.Forwards), vm.news
	return func(yield func(smolvm.ForwardEvent) bool) {
		for _, f := range known {
			if !yield(smolvm.ForwardEvent{Kind: smolvm.ForwardExposed, Forward: f}) {
				return
			}
		}
		for {
			select {
			case e, ok := <-news:
				if !ok || !yield(e) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}, nil
}

// set changes a VM. Its news go on if it is told of them.
func (w *portWorld) set(name string, status smolvm.Status, forwards ...smolvm.Forward) chan smolvm.ForwardEvent {
	w.mu.Lock()
	defer w.mu.Unlock()
	vm := w.vms[name]
	if vm == nil {
		vm = &watchedVM{news: make(chan smolvm.ForwardEvent)}
		w.vms[name] = vm
	}
	vm.info = smolvm.Info{Name: name, Status: status, Forwards: forwards}
	return vm.news
}

// lose ends the news of a VM, as the death of its owner does.
func (w *portWorld) lose(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.vms[name].news)
	w.vms[name].news = make(chan smolvm.ForwardEvent)
}

func (w *portWorld) fail(name string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.vms[name].info.Err, w.vms[name].info.Forwards = err, nil
}

// events are what the watch has printed since the last call.
func (w *portWorld) events() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	printed := w.printed
	w.printed = nil
	return printed
}

// watch begins a watch of the world.
func (w *portWorld) watch(named bool) (end context.CancelFunc, done chan error) {
	ctx, cancel := context.WithCancel(context.Background())
	watch := newPortWatch(w.infos, w.follow)
	watch.named = named
	watch.event = func(e portEvent) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.printed = append(w.printed, strings.Join(strings.Fields(e.String()), " "))
		return nil
	}
	done = make(chan error, 1)
	go func() { done <- watch.run(ctx) }()
	return cancel, done
}

func forwardTo(host, guest int, health smolvm.Health) smolvm.Forward {
	return smolvm.Forward{Pair: smolvm.Pair{HostPort: host, GuestPort: guest, Protocol: smolvm.TCP}, Transport: smolvm.NFTables, Health: health}
}

func inPortWorld(t *testing.T, test func(t *testing.T, w *portWorld)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, &portWorld{vms: make(map[string]*watchedVM)}) })
}

// expectEvents checks what was printed until nothing more happens, after some looks.
func expectEvents(t *testing.T, w *portWorld, want ...string) {
	t.Helper()
	time.Sleep(5 * lookInterval) // of the bubble's time
	synctest.Wait()
	got := w.events()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("events\n%s\nnot\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestWatchTellsWhatHappens(t *testing.T) {
	inPortWorld(t, func(t *testing.T, w *portWorld) {
		eight, nine := forwardTo(8000, 80, smolvm.Waiting), forwardTo(9000, 90, smolvm.Active)
		news := w.set("web", smolvm.StatusRunning, eight)
		end, done := w.watch(false)
		expectEvents(t, w, "exposed web 127.0.0.1:8000 -> 80 transport=nftables health=waiting")

		active := eight
		active.Health = smolvm.Active
		w.set("web", smolvm.StatusRunning, active, nine)
		news <- smolvm.ForwardEvent{Kind: smolvm.ForwardChanged, Forward: active}
		news <- smolvm.ForwardEvent{Kind: smolvm.ForwardExposed, Forward: nine}
		expectEvents(t, w,
			"changed web 127.0.0.1:8000 -> 80 transport=nftables health=active",
			"exposed web 127.0.0.1:9000 -> 90 transport=nftables health=active")

		w.set("web", smolvm.StatusRunning, nine)
		news <- smolvm.ForwardEvent{Kind: smolvm.ForwardUnexposed, Forward: active}
		expectEvents(t, w, "unexposed web 127.0.0.1:8000 -> 80 transport=nftables health=active")

		w.set("db", smolvm.StatusRunning, forwardTo(5432, 5432, smolvm.Active))
		expectEvents(t, w, "exposed db 127.0.0.1:5432 -> 5432 transport=nftables health=active")

		end()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestWatchSeesWhatNobodyTold(t *testing.T) {
	inPortWorld(t, func(t *testing.T, w *portWorld) {
		eight, nine := forwardTo(8000, 80, smolvm.Active), forwardTo(9000, 90, smolvm.Active)
		w.set("web", smolvm.StatusRunning, eight, nine)
		end, done := w.watch(false)
		expectEvents(t, w,
			"exposed web 127.0.0.1:8000 -> 80 transport=nftables health=active",
			"exposed web 127.0.0.1:9000 -> 90 transport=nftables health=active")

		// An owner that dies and is followed by another one is no event.
		w.lose("web")
		expectEvents(t, w)
		// Nor is one that does not answer.
		w.fail("web", errors.New("no answer"))
		w.lose("web")
		expectEvents(t, w)

		// What was unexposed while nobody told is seen.
		w.set("web", smolvm.StatusRunning, nine)
		expectEvents(t, w, "unexposed web 127.0.0.1:8000 -> 80 transport=nftables health=active")

		w.set("web", smolvm.StatusStopped)
		w.lose("web")
		expectEvents(t, w, "unexposed web 127.0.0.1:9000 -> 90 transport=nftables health=active")
		end()
		<-done
	})
}

func TestWatchBelievesNewsRatherThanAnOlderLook(t *testing.T) {
	w := newPortWatch(nil, nil)
	var printed []string
	w.event = func(e portEvent) error {
		printed = append(printed, e.Event)
		return nil
	}
	began := w.turn
	event := smolvm.ForwardEvent{Kind: smolvm.ForwardExposed, Forward: forwardTo(8000, 80, smolvm.Active)}
	if err := w.take(portNews{"web", &event}); err != nil {
		t.Fatal(err)
	}
	empty := []smolvm.Info{{Name: "web", Status: smolvm.StatusRunning}}
	if err := w.compare(portLook{turn: began, infos: empty}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(printed, []string{"exposed"}) {
		t.Errorf("an older look made it %q", printed)
	}
	if err := w.compare(portLook{turn: w.turn, infos: empty}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(printed, []string{"exposed", "unexposed"}) {
		t.Errorf("a younger look made it %q", printed)
	}
}

func TestWatchEndsWithTheVMThatWasNamed(t *testing.T) {
	inPortWorld(t, func(t *testing.T, w *portWorld) {
		w.set("web", smolvm.StatusRunning, forwardTo(8000, 80, smolvm.Active))
		end, done := w.watch(true)
		defer end()
		expectEvents(t, w, "exposed web 127.0.0.1:8000 -> 80 transport=nftables health=active")
		w.mu.Lock()
		clear(w.vms)
		w.err = smolvm.ErrNotFound
		w.mu.Unlock()
		expectEvents(t, w, "unexposed web 127.0.0.1:8000 -> 80 transport=nftables health=active")
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestWatchOfNoVMFails(t *testing.T) {
	inPortWorld(t, func(t *testing.T, w *portWorld) {
		w.err = smolvm.ErrNotFound
		_, done := w.watch(true)
		if err := <-done; !errors.Is(err, smolvm.ErrNotFound) {
			t.Error(err)
		}
	})
}
