package network

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"testing"

	"go.uber.org/goleak"

	"github.com/smolvm/smolvm/internal/network/nettest"
)

func TestMain(m *testing.M) {
	if guest := os.Getenv(churnVariable); guest != "" {
		h := NewHost(Options{})
		if err := errors.Join(churn(h, netip.MustParseAddr(guest)), h.Close()); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		return
	}
	nettest.Main(func() int {
		code := m.Run()
		if err := goleak.Find(); err != nil && code == 0 {
			os.Stderr.WriteString(err.Error() + "\n")
			return 1
		}
		return code
	})
}

// testHost returns a Host with a runtime directory of its own, and checks in the
// end that nothing is left.
func testHost(t testing.TB) *Host {
	t.Helper()
	dir := t.TempDir() + "/run"
	h := NewHost(Options{RuntimeDir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	before := leftovers(t)
	t.Cleanup(func() {
		if after := leftovers(t); after != before {
			t.Errorf("left behind:\n%s\nwas before:\n%s", after, before)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("runtime directory is still there: %v", err)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// leftovers shows what the tests may change in their namespace.
func leftovers(t testing.TB) string {
	t.Helper()
	return run(t, "nft", "list", "ruleset") + run(t, "ip", "-o", "-4", "addr") + run(t, "ip", "route", "show", "table", "main") +
		run(t, "sh", "-c", "grep -H . /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv4/conf/*/route_localnet")
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// attach attaches a VM until the test ends.
func attach(t testing.TB, h *Host, a Attachment) *Interface {
	t.Helper()
	i, err := h.Attach(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	})
	return i
}

func guestOn(t testing.TB, i *Interface) *nettest.Namespace {
	t.Helper()
	return nettest.Guest(t, i, i.HostAddr, i.GuestMAC)
}
