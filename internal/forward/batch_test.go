package forward_test

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"testing"

	"github.com/smolvm/smolvm/internal/forward"
)

// row are requests for n ports of the guest, from 1000 on, and host ports from first on.
func row(first, n int) []forward.Request {
	reqs := make([]forward.Request, n)
	for i := range reqs {
		reqs[i] = forward.Request{GuestPort: 1000 + i, HostPort: first + i, HostPortSet: true}
	}
	return reqs
}

// freeRow is the first of n free ports in a row.
func freeRow(t *testing.T, n int) int {
	t.Helper()
	for first := 20000; first < 30000; first += n {
		free := true
		for i := range n {
			free = free && forward.PortAvailable(first+i)
		}
		if free {
			return first
		}
	}
	t.Fatalf("no %d ports in a row are free", n)
	return 0
}

func TestExposeAll(t *testing.T) {
	for _, transport := range []forward.Transport{forward.NFTables, forward.SSHTunnel} {
		t.Run(string(transport), func(t *testing.T) {
			m := newMachine(t)
			must(t, m.Prove(t.Context()))
			before := settled(t)
			const n = 100
			for i := range n {
				m.serve("0.0.0.0:"+strconv.Itoa(1000+i), fmt.Sprint("server ", i))
			}
			first := freeRow(t, n)
			reqs := row(first, n)
			for i := range reqs {
				reqs[i].Transport = transport
			}
			forwards, err := m.ExposeAll(t.Context(), reqs)
			must(t, err)
			var pairs []forward.Pair
			for i, f := range forwards {
				pairs = append(pairs, f.Pair)
				if f.HostPort != first+i || f.GuestPort != 1000+i || f.Transport != transport {
					t.Fatalf("forward %d is %+v", i, f)
				}
				for _, host := range both() {
					wantAnswer(t, host, f.HostPort, fmt.Sprint("server ", i))
				}
			}
			// The same again is what there is; one pair given twice is one.
			again, err := m.ExposeAll(t.Context(), append(reqs, reqs[0]))
			must(t, err)
			if len(again) != n+1 || again[n].Pair != forwards[0].Pair || len(m.Forwards()) != n {
				t.Errorf("the same again made %d of %d", len(m.Forwards()), len(again))
			}
			must(t, m.Unexpose(t.Context(), append(pairs, pairs[0])...))
			if got := m.Forwards(); len(got) != 0 {
				t.Errorf("%d are left", len(got))
			}
			must(t, m.Unexpose(t.Context(), pairs...))
			m.closeServers()
			wantFootprint(t, before)
		})
	}
}

// Whatever goes wrong with one of many, nothing remains of the others.
func TestExposeAllOrNone(t *testing.T) {
	const n = 20
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, m *machine, reqs []forward.Request)
		want  error
	}{
		{"busy", func(t *testing.T, _ *machine, reqs []forward.Request) {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(reqs[n/2].HostPort)))
			must(t, err)
			t.Cleanup(func() { l.Close() })
			reqs[n/2].Strict = true
		}, forward.ErrPortInUse},
		{"mapped", func(t *testing.T, m *machine, reqs []forward.Request) {
			other := forward.Mapping{Protocol: forward.TCP, HostPort: uint16(reqs[n-1].HostPort), Guest: m.othersPort()}
			must(t, m.host.Table().Add(t.Context(), other))
			t.Cleanup(func() { must(t, m.host.Table().Delete(t.Context(), other)) })
			reqs[n-1].Strict = true
		}, forward.ErrPortInUse},
		{"invalid", func(_ *testing.T, _ *machine, reqs []forward.Request) { reqs[n-1].GuestPort = 0 }, forward.ErrInvalidPort},
		{"impossible", func(t *testing.T, m *machine, reqs []forward.Request) {
			m.SetListeners(listeners(loopbackOnly(uint16(reqs[n-1].GuestPort))))
			reqs[n-1].Transport = forward.NFTables
		}, forward.ErrTransport},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMachine(t)
			must(t, m.Prove(t.Context()))
			reqs := row(freeRow(t, n), n)
			if forwards, err := m.ExposeAll(t.Context(), reqs); err != nil || len(forwards) != n {
				t.Fatalf("unspoilt: %v", err)
			}
			for _, f := range m.Forwards() {
				m.unexpose(f)
			}
			test.spoil(t, m, reqs)
			before := settled(t)
			if _, err := m.ExposeAll(t.Context(), reqs); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			wantFootprint(t, before)
			if got := m.Forwards(); len(got) != 0 {
				t.Errorf("%d forwards are left", len(got))
			}
		})
	}
}

// What is mapped to another guest, or busy, is stepped around by that one alone.
func TestExposeAllStepsAround(t *testing.T) {
	m := newMachine(t)
	must(t, m.Prove(t.Context()))
	first := freeRow(t, 10)
	other := forward.Mapping{Protocol: forward.TCP, HostPort: uint16(first), Guest: m.othersPort()}
	must(t, m.host.Table().Add(t.Context(), other))
	l, err := net.Listen("tcp", net.JoinHostPort("::1", strconv.Itoa(first+1)))
	must(t, err)
	defer l.Close()
	forwards, err := m.ExposeAll(t.Context(), row(first, 3))
	must(t, err)
	got := map[int]bool{}
	for i, f := range forwards {
		if f.GuestPort != 1000+i || f.HostPort == first || f.HostPort == first+1 || got[f.HostPort] {
			t.Errorf("forward %d is %+v", i, f)
		}
		got[f.HostPort] = true
		if !m.mapped(f.HostPort) {
			t.Errorf("%d is not mapped", f.HostPort)
		}
	}
	if n := m.log.Count("took another"); n < 2 {
		t.Errorf("%d warnings: %s", n, m.log)
	}
	must(t, m.host.Table().Delete(t.Context(), other))
}
