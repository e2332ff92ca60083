package forward_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
)

func TestNoTable(t *testing.T) {
	m := newMachine(t, func(c *forward.Config) { c.Table, c.TableUnavailable = nil, errBroken })
	m.serve("127.0.0.1:80", "page")
	for _, port := range []int{80, 81} {
		f := m.expose(forward.Request{GuestPort: port})
		if f.Transport != forward.SSHTunnel || f.Reason != errBroken.Error() {
			t.Errorf("got %+v", f)
		}
	}
	f := m.expose(forward.Request{GuestPort: 80}) // the same again
	wantAnswer(t, "127.0.0.1", f.HostPort, "page")
	if m.log.Count("level=WARN") != 1 || m.log.Count("transport=ssh_tunnel") != 2 {
		t.Error("logged:", m.log)
	}
	_, err := m.Expose(t.Context(), forward.Request{GuestPort: 82, Transport: forward.NFTables})
	if !errors.Is(err, forward.ErrTransport) || !errors.Is(err, errBroken) {
		t.Error("forced:", err)
	}
}

func TestNoTunnel(t *testing.T) {
	m := newMachine(t, func(c *forward.Config) { c.Table, c.Tunnel = nil, nil })
	for _, transport := range []forward.Transport{"", forward.SSHTunnel} {
		if _, err := m.Expose(t.Context(), forward.Request{GuestPort: 80, Transport: transport}); !errors.Is(err, forward.ErrTransport) {
			t.Errorf("%q: %v", transport, err)
		}
	}
}

// Each of these hosts has a table, and something that keeps it from working.
func TestProofFindsWhatIsBroken(t *testing.T) {
	for _, test := range []struct {
		name    string
		probe   forward.Probe
		rules   string // of the host's own firewall
		because string
	}{
		{"rule is void", forward.Probe{}, "add rule ip other output ip daddr 127.0.0.1 tcp dport > 1024 dnat to 127.0.0.1:1", "refused"},
		{"refused", forward.Probe{Port: 23, Banner: "x"}, "", "refused"},
		{"something else answers", forward.Probe{Port: 22, Banner: "220 "}, "", "something else"},
		{"hangs up", forward.Probe{Port: 22, Banner: "SSH-2.0-test and more"}, "", "greeting"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMachine(t, func(c *forward.Config) { c.Probe = test.probe })
			before := settled(t)
			if test.rules != "" {
				run(t, "nft", "add table ip other; add chain ip other output { type nat hook output priority -110; }; "+test.rules)
				defer run(t, "nft", "delete table ip other")
				before = settled(t)
			}
			err := m.Prove(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.because) {
				t.Errorf("the proof says %v", err)
			}
			wantFootprint(t, before)
			if f := m.expose(forward.Request{GuestPort: 80}); f.Transport != forward.SSHTunnel || f.Reason != err.Error() {
				t.Errorf("got %+v", f)
			}
		})
	}
}

func TestProofIsBounded(t *testing.T) {
	m := newMachine(t)
	run(t, "nft", "add table ip other; add chain ip other output { type filter hook output priority 0; }; add rule ip other output tcp dport 22 drop")
	defer run(t, "nft", "delete table ip other")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.Expose(ctx, forward.Request{GuestPort: 80}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an impatient caller got %v", err)
	}
	// The tunnel needs no proof.
	m.expose(forward.Request{GuestPort: 80, Transport: forward.SSHTunnel})
	began := time.Now()
	must(t, m.Close())
	if took := time.Since(began); took > time.Second {
		t.Errorf("close waited %v for the proof", took)
	}
	if err := m.Prove(t.Context()); err == nil {
		t.Error("an interrupted proof counts as one")
	}
}
