package network

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/network/nettest"
)

// served is a guest with a server that is exposed.
type served struct {
	host    *Host
	ifc     *Interface
	guest   *nettest.Namespace
	mapping forward.Mapping
}

func newServed(t *testing.T) served {
	t.Helper()
	h := testHost(t)
	i := attach(t, h, Attachment{VM: "a"})
	guest := guestOn(t, i)
	go greet(guest.Listen("0.0.0.0:80"))
	m := forward.Mapping{Protocol: forward.TCP, HostPort: 8000, Guest: netip.AddrPortFrom(i.GuestAddr, 80)}
	if err := h.Table().Add(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return served{h, i, guest, m}
}

func (s served) reach(limit time.Duration) error {
	var here net.Dialer
	_, err := greeting(limit, here.DialContext, "127.0.0.1:8000")
	return err
}

// TestExplain has other tables stop a forward in each way they can, and asks who it is.
func TestExplain(t *testing.T) {
	s := newServed(t)
	explain := func() string { return s.host.Firewall().Explain(t.Context(), s.mapping) }
	if err := s.reach(patience); err != nil {
		t.Fatal("without a firewall it should work:", err)
	}
	if got := explain(); got != "" {
		t.Errorf("a forward that works is explained: %s", got)
	}
	for _, test := range []struct{ name, rules, want string }{
		{"policy in output", "table inet filter { chain output { type filter hook output priority 0; policy drop; }; }",
			"table inet filter, chain output drops it: policy drop"},
		{"policy in input", "table inet filter { chain input { type filter hook input priority 0; policy drop; }; }",
			"table inet filter, chain input drops it: policy drop"},
		{"policy in ip", "table ip filter { chain OUTPUT { type filter hook output priority 0; policy drop; }; }",
			"table ip filter, chain OUTPUT drops it: policy drop"},
		{"rule for the answer", `table ip fw { chain in { type filter hook input priority -10; iifname "smol0" drop comment "no strangers"; }; }`,
			"table ip fw, chain in drops it: rule with handle 2 (no strangers)"},
		{"rule before all", `table ip fw { chain pre { type filter hook prerouting priority -310; ip saddr 198.18.0.0/16 drop; }; }`,
			"table ip fw, chain pre drops it: rule with handle 2"},
		{"rejection", "table inet fw { chain out { type filter hook output priority 0; tcp dport 80 reject; }; }",
			"table inet fw, chain out drops it: rule with handle 2"},
		{"rule in postrouting", `table ip fw { chain post { type filter hook postrouting priority 0; oifname "smol*" drop; }; }`,
			"table ip fw, chain post drops it: rule with handle 2"},
		{"rule that is jumped to", "table inet fw { chain no { drop; }; chain out { type filter hook output priority 0; ip daddr 198.18.0.0/16 jump no; }; }",
			"table inet fw, chain no drops it: rule with handle 3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			name := strings.Join(strings.Fields(test.rules)[:3], " ")
			nft(t, test.rules)
			defer nft(t, "delete "+name)
			if err := s.reach(impatience); err == nil {
				t.Error("the forward works, so there is nothing to explain")
			}
			if got := explain(); got != test.want {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
			if got := run(t, "nft", "list", "tables"); strings.Contains(got, tracePrefix) {
				t.Errorf("the trace was left behind:\n%s", got)
			}
		})
	}
	if err := s.reach(patience); err != nil {
		t.Error("in the end it should work again:", err)
	}
}

// TestExplainThatIsGivenUp ends the caller's patience while nothing answers.
func TestExplainThatIsGivenUp(t *testing.T) {
	s := newServed(t)
	s.guest.Run("nft", "table inet deaf { chain in { type filter hook input priority 0; tcp dport 80 drop; }; }")
	ctx, cancel := context.WithTimeout(t.Context(), impatience)
	defer cancel()
	if got := s.host.Firewall().Explain(ctx, s.mapping); got != "" {
		t.Errorf("got %q", got)
	}
	// The dialer keeps to the deadline by itself, and may be before the context.
	if deadline, _ := ctx.Deadline(); time.Now().Before(deadline) {
		t.Error("the connection came about, or was refused")
	}
	if got := run(t, "nft", "list", "tables"); strings.Contains(got, tracePrefix) {
		t.Errorf("the trace was left behind:\n%s", got)
	}
}

func TestLegacyTablesAreSuspected(t *testing.T) {
	file := filepath.Join(t.TempDir(), "names")
	for content, want := range map[string]string{
		"":              "",
		"filter\nnat\n": "perhaps a rule of legacy iptables (table filter, nat) drops it",
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := suspect(file); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := suspect(filepath.Join(t.TempDir(), "none")); got != "" {
		t.Errorf("without the file: %q", got)
	}
}

func TestWatch(t *testing.T) {
	s := newServed(t)
	calls := make(chan struct{}, 100)
	stop, err := s.host.Firewall().Watch(func() { calls <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	called := func(limit time.Duration) bool {
		select {
		case <-calls:
			return true
		case <-time.After(limit):
			return false
		}
	}
	quiet := func() {
		for called(2 * watchDelay) {
		}
	}
	for _, change := range []string{
		"nft add table inet filter",
		"nft add chain inet filter output '{ type filter hook output priority 0; policy drop; }'",
		"nft delete table inet filter",
		"nft add table ip smolvm2; nft delete table ip smolvm2",
		"ip link set smol0 down",
		"ip addr add 198.18.77.1/24 dev lo; ip addr del 198.18.77.1/24 dev lo; ip route add 198.18.0.1/32 dev lo; ip route del 198.18.0.1/32 dev lo",
		"ip rule add to 198.18.0.0/16 table 77; ip rule del to 198.18.0.0/16 table 77",
		"echo 0 >" + ipv4Conf("smol0", "route_localnet"), // of which it learns when it mends it
	} {
		quiet()
		run(t, "sh", "-c", change)
		if !called(patience) {
			t.Errorf("nobody was told of %q", change)
		}
	}
	settle(t, s.host)
	quiet()
	other := forward.Mapping{Protocol: forward.TCP, HostPort: 8001, Guest: s.mapping.Guest}
	must(t, s.host.Table().Add(t.Context(), other))
	must(t, s.host.Table().Delete(t.Context(), other))
	if got := s.host.Firewall().Explain(t.Context(), s.mapping); got != "" {
		t.Error(got)
	}
	if called(impatience) {
		t.Error("it takes our own changes for others'")
	}
	stop()
	nft(t, "add table inet filter; delete table inet filter")
	if called(impatience) {
		t.Error("it calls after it was stopped")
	}
}

// TestWatchCallsOneByOne has changes go on while the caller is busy.
func TestWatchCallsOneByOne(t *testing.T) {
	s := newServed(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	stop, err := s.host.Firewall().Watch(func() {
		entered <- struct{}{}
		<-leave
	})
	if err != nil {
		t.Fatal(err)
	}
	nft(t, "add table inet filter; delete table inet filter")
	<-entered
	nft(t, "add table inet filter; delete table inet filter")
	select {
	case <-entered:
		t.Error("it was called twice at once")
	case <-time.After(impatience):
	}
	leave <- struct{}{}
	<-entered // the change meanwhile was not forgotten
	close(leave)
	stop()
}
