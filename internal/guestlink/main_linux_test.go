package guestlink

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestapi/wire"
)

func mainOf(id, replaces, line string) guestapi.Main {
	return guestapi.Main{ID: id, Replaces: replaces, Exec: sh(line)}
}

func haveMain(t *testing.T, l *Link, wanted guestapi.Main) *Main {
	t.Helper()
	m, err := l.Main(t.Context(), wanted)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A main process outlives the link, is not started twice, and how it ended is told whoever asks,
// and whenever.
func TestMainProcess(t *testing.T) {
	system := newFakeSystem()
	p := startGuest(t, system)
	l := dial(t, p)
	order := t.TempDir() + "/order"
	fifo := makeFIFO(t, order)

	first := haveMain(t, l, mainOf("a", "", "echo started; read line <"+order+"; echo $line; exit 3"))
	if b := first.Begun(); b.ID != "a" || b.PID == 0 || b.Started.IsZero() || !b.Ended.IsZero() {
		t.Errorf("begun: %+v", b)
	}
	system.console.await(t, "started\n")
	l.Close()
	if _, err := first.Ended(); !errors.Is(err, ErrLost) {
		t.Errorf("without the link: %v", err)
	}

	l = dial(t, p)
	if err := l.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := haveMain(t, l, mainOf("a", "", "echo twice"))
	other := haveMain(t, l, mainOf("b", "", "echo another"))
	if again.Begun() != first.Begun() || other.Begun() != first.Begun() {
		t.Errorf("got %+v and %+v", again.Begun(), other.Begun())
	}
	// It is not replaced while it runs.
	running := haveMain(t, l, mainOf("b", "a", "echo too early"))
	if running.Begun() != first.Begun() {
		t.Errorf("got %+v", running.Begun())
	}
	if _, err := fifo.WriteString("went on\n"); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Main{again, other, running} {
		end, err := m.Ended()
		if err != nil || end.ID != "a" || end.Status != (guestapi.ExitStatus{Code: 3}) || end.Ended.IsZero() {
			t.Errorf("ended: %+v, %v", end, err)
		}
	}
	// What it said is there before its end is told, and nothing else was started.
	if said := system.console.await(t, "went on\n"); strings.Contains(said, "twice") || strings.Contains(said, "another") || strings.Contains(said, "early") {
		t.Errorf("said %q", said)
	}
	l.Close()
	l = dial(t, p)
	late := haveMain(t, l, mainOf("c", "", "echo never"))
	if end, err := late.Ended(); err != nil || end.ID != "a" || end.Status.Code != 3 || late.Begun() != end {
		t.Errorf("told late: %+v, %v", end, err)
	}

	// The next one, which gets a signal, alone.
	next := haveMain(t, l, mainOf("c", "a", "trap 'echo caught; exit 4' QUIT; trap : TERM; echo ready; while :; do sleep 0.01; done"))
	system.console.await(t, "ready\n")
	if err := errors.Join(next.Signal(syscall.SIGTERM), next.Signal(syscall.SIGQUIT)); err != nil {
		t.Fatal(err)
	}
	if end, err := next.Ended(); err != nil || end.ID != "c" || end.Status.Code != 4 {
		t.Errorf("ended: %+v, %v", end, err)
	}
	killed := haveMain(t, l, mainOf("d", "c", "kill -9 $$"))
	if end, err := killed.Ended(); err != nil || end.Status != (guestapi.ExitStatus{Code: 137, Signal: "KILL"}) {
		t.Errorf("ended: %+v, %v", end, err)
	}
}

func TestMainProcessRefused(t *testing.T) {
	l := dial(t, startGuest(t, newFakeSystem()))
	for name, wanted := range map[string]guestapi.Main{
		"no program":  {ID: "a", Exec: guestapi.Exec{Argv: []string{"/no/such"}}},
		"unknown dir": {ID: "a", Exec: guestapi.Exec{Argv: []string{"true"}, Dir: "/no/such"}},
		"no ID":       {Exec: guestapi.Exec{Argv: []string{"true"}}},
		"terminal":    {ID: "a", Exec: guestapi.Exec{Argv: []string{"true"}, Terminal: &guestapi.Terminal{}}},
		"input":       {ID: "a", Exec: guestapi.Exec{Argv: []string{"true"}, Stdin: true}},
	} {
		var start *StartError
		if _, err := l.Main(t.Context(), wanted); !errors.As(err, &start) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// What could not be started is not there.
	if end, err := haveMain(t, l, mainOf("b", "", "exit 5")).Ended(); err != nil || end.Status.Code != 5 {
		t.Errorf("ended: %+v, %v", end, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Main(ctx, mainOf("c", "b", "true")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Whatever a guest says of its main process, who asks is answered soon.
func TestMainProcessOfHostileGuest(t *testing.T) {
	now := time.Now()
	state := func(s guestapi.MainState) []byte { return guestapi.Encode(&s) }
	said := map[string][][]byte{
		"nothing":         nil,
		"nonsense":        {[]byte("x")},
		"too long an ID":  {state(guestapi.MainState{ID: strings.Repeat("x", maxID+1), Ended: now})},
		"then nothing":    {state(guestapi.MainState{ID: "a"})},
		"then nonsense":   {state(guestapi.MainState{ID: "a"}), []byte("x")},
		"the end at once": {state(guestapi.MainState{ID: "a", PID: -1, Ended: now, Status: guestapi.ExitStatus{Code: -1, Signal: "\x1b\x00"}})},
		"more than enough": {
			state(guestapi.MainState{ID: "a"}), state(guestapi.MainState{ID: "a"}), state(guestapi.MainState{ID: "b", Ended: now, Status: guestapi.ExitStatus{Code: 1 << 40}}),
			state(guestapi.MainState{ID: "c"}), []byte("x"),
		},
	}
	ends := map[string]bool{"the end at once": true, "more than enough": true}
	begins := map[string]bool{"then nothing": true, "then nonsense": true}
	for name, states := range said {
		host, end := socketPair(t)
		go func() {
			server := wire.NewGuest(wire.NewConn(answerHello(end)))
			go func() {
				for range server.Requests() {
				}
			}()
			for open := range server.Opens() {
				channel, reqs, err := open.Accept()
				if err != nil {
					continue
				}
				go ssh.DiscardRequests(reqs)
				for _, s := range states {
					_, _ = channel.SendRequest(guestapi.RequestMainState, false, s)
				}
				if !ends[name] { // else it never ends
					channel.Close()
				}
			}
		}()
		l, err := Dial(t.Context(), host, discard())
		if err != nil {
			t.Fatal(err)
		}
		m, err := l.Main(t.Context(), mainOf("a", "", "true"))
		switch {
		case !begins[name] && !ends[name]:
			if !errors.Is(err, ErrLost) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		default:
			got, err := m.Ended()
			if ends[name] != (err == nil) || !ends[name] && !errors.Is(err, ErrLost) {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
			if ends[name] && (got.Status.Code != maxExitCode || got.PID < 0 || strings.ContainsAny(got.Status.Signal, "\x1b\x00")) {
				t.Errorf("%s: %+v", name, got)
			}
		}
		l.Close()
		end.Close()
	}
}
