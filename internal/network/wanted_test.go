package network

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/smolvm/smolvm/internal/forward"
)

func TestRemovedForwardsComeBack(t *testing.T) {
	h := testHost(t)
	g := newEchoer(t, h, "guest")
	kept, dropped, udp := g.mapping(forward.TCP, 8000), g.mapping(forward.TCP, 8001), g.mapping(forward.UDP, 8000)
	expose(t, h, kept, dropped, udp)
	unexpose(t, h, dropped)
	want := run(t, "nft", "list", "ruleset")
	for _, damage := range []string{
		"flush ruleset",
		"delete table ip smolvm",
		"flush map ip smolvm forwards",
		"flush set ip smolvm to_guests",
		"delete element ip smolvm forwards { tcp . 8000 }",
		"delete element ip smolvm from_guests { udp . 8000 }",
		"delete map ip smolvm forwards", // with the rule that needs it: this one is refused
	} {
		if out, err := exec.Command("nft", damage).CombinedOutput(); err != nil != (damage == "delete map ip smolvm forwards") {
			t.Fatalf("%s: %v: %s", damage, err, out)
		}
		if err := h.Reap(t.Context()); err != nil {
			t.Fatalf("after %q: %v", damage, err)
		}
		if got := run(t, "nft", "list", "ruleset"); got != want {
			t.Errorf("after %q:\n%s", damage, got)
		}
	}
	wantSay(t, dialHere(t, "tcp", 8000), "1", "guest1")
	unexpose(t, h, kept, udp)
	run(t, "nft", "flush ruleset")
	if err := h.Reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "nft", "list", "map", "ip", "smolvm", "forwards"); strings.Contains(got, "elements") {
		t.Errorf("what was deleted came back:\n%s", got)
	}
}

func TestWantedPortOfAnotherGuestIsLeftAlone(t *testing.T) {
	h := testHost(t)
	var log bytes.Buffer
	h.log = slog.New(slog.NewTextHandler(&log, nil))
	a, b := attach(t, h, Attachment{VM: "a"}), attach(t, h, Attachment{VM: "b"})
	m := forward.Mapping{Protocol: forward.TCP, HostPort: 8000, Guest: netip.AddrPortFrom(a.GuestAddr, 80)}
	expose(t, h, m)
	unattended(h)
	theirs := m
	theirs.Guest = netip.AddrPortFrom(b.GuestAddr, 80)
	other := NewHost(Options{RuntimeDir: h.dir})
	defer other.Close()
	run(t, "nft", "delete element ip smolvm forwards { tcp . 8000 }")
	expose(t, other, theirs)
	check := func(want netip.AddrPort, said int) {
		t.Helper()
		for range 2 {
			if err := h.Reap(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := h.Table().Lookup(t.Context(), forward.TCP, 8000); err != nil || got != want {
			t.Errorf("the port goes to %v, %v", got, err)
		}
		if n := strings.Count(log.String(), "mapped to another guest"); n != said {
			t.Errorf("it was said %d times:\n%s", n, log.String())
		}
	}
	check(theirs.Guest, 1)
	unexpose(t, other, theirs)
	check(m.Guest, 1) // it is free, and ours again
}

func TestDeadGuestsForwardsAreNotWanted(t *testing.T) {
	for name, end := range map[string]func(i *Interface) error{
		"closed":  (*Interface).Close,
		"crashed": func(i *Interface) error { return i.file.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			h := testHost(t)
			attach(t, h, Attachment{VM: "keep"})
			i := attach(t, h, Attachment{VM: "dead"})
			m := forward.Mapping{Protocol: forward.TCP, HostPort: 8000, Guest: netip.AddrPortFrom(i.GuestAddr, 80)}
			expose(t, h, m)
			if err := end(i); err != nil {
				t.Fatal(err)
			}
			attach(t, h, Attachment{VM: "heir"})
			run(t, "nft", "flush ruleset")
			if err := h.Reap(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got, err := h.Table().Lookup(t.Context(), forward.TCP, 8000); err != nil || got.IsValid() {
				t.Errorf("the dead guest's port goes to %v, %v", got, err)
			}
		})
	}
}
