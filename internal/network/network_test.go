package network

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
)

func TestCapable(t *testing.T) {
	h := testHost(t)
	if err := h.Capable(); err != nil {
		t.Fatal(err)
	}
}

// TestManyFiles has so many files open that package nftables would end the program.
func TestManyFiles(t *testing.T) {
	h := testHost(t)
	var files []*os.File
	for range selectLimit {
		f, err := os.Open(os.DevNull)
		must(t, err)
		files = append(files, f)
	}
	if err := h.Capable(); !errors.Is(err, errManyFiles) {
		t.Errorf("with %d files open: %v", selectLimit, err)
	}
	for _, f := range files {
		must(t, f.Close())
	}
	if err := h.Capable(); err != nil {
		t.Error("without them:", err)
	}
}

func TestNotCapable(t *testing.T) {
	h := testHost(t)
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread loses a capability and is thrown away
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData
		must(t, unix.Capget(&header, &sets[0]))
		sets[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		must(t, unix.Capset(&header, &sets[0]))
		result <- h.Capable()
	}()
	if err := <-result; err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("without the capability: %v", err)
	}
	v6 := NewHost(Options{Pool: netip.MustParsePrefix("fd00::/64")})
	if err := v6.Capable(); err == nil || !strings.Contains(err.Error(), "pool") {
		t.Errorf("with an IPv6 pool: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func TestInterface(t *testing.T) {
	h := testHost(t)
	a := attach(t, h, Attachment{VM: "web-1", MTU: 1400})
	b := attach(t, h, Attachment{VM: "web-2", Egress: true})
	if a.Name != "smol0" || b.Name != "smol1" {
		t.Errorf("names %s, %s", a.Name, b.Name)
	}
	if got := a.GuestPrefix().String() + " " + a.HostAddr.String() + " " + a.GuestMAC.String(); got != "198.18.0.1/31 198.18.0.0 02:73:00:00:00:00" {
		t.Error(got)
	}
	link := run(t, "ip", "-d", "link", "show", a.Name)
	for _, want := range []string{"mtu 1400", "alias web-1", "vnet_hdr on", "persist off", ",UP"} {
		if !strings.Contains(link, want) {
			t.Errorf("no %q in %s", want, link)
		}
	}
	for _, s := range tapSettings(a.Name, false) {
		if got, err := readSetting(s.path); err != nil || got != s.value {
			t.Errorf("%s is %q, %v", s.path, got, err)
		}
	}
	if got := run(t, "ip", "-6", "addr", "show", "dev", a.Name); got != "" {
		t.Errorf("interface has IPv6: %s", got)
	}
	if _, err := net.Dial("tcp", "198.18.200.1:80"); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("address of no guest: %v", err)
	}
}

func TestAddressesInUseAreSkipped(t *testing.T) {
	h := testHost(t)
	run(t, "ip", "addr", "add", "198.18.0.1/32", "dev", "lo")
	t.Cleanup(func() { run(t, "ip", "addr", "del", "198.18.0.1/32", "dev", "lo") })
	if i := attach(t, h, Attachment{VM: "a"}); i.Name != "smol1" {
		t.Errorf("got %s, %s", i.Name, i.GuestAddr)
	}
}

func TestPoolRunsOut(t *testing.T) {
	small := testHost(t)
	small.pool = netip.MustParsePrefix("198.18.0.0/30")
	attach(t, small, Attachment{VM: "a"})
	attach(t, small, Attachment{VM: "b"})
	if i, err := small.Attach(t.Context(), Attachment{VM: "c"}); err == nil {
		i.Close()
		t.Fatal("a third guest got an address")
	}
}

func generation(t *testing.T) uint32 {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	g, err := conn.GetGen()
	if err != nil {
		t.Fatal(err)
	}
	return g.ID
}

func TestEnsureLeavesGoodTableAlone(t *testing.T) {
	h := testHost(t)
	attach(t, h, Attachment{VM: "a", Egress: true})
	before := generation(t)
	if err := h.Reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := generation(t); after != before {
		t.Errorf("rules were written again: generation %d, then %d", before, after)
	}
}

func TestEnsureMendsTable(t *testing.T) {
	h := testHost(t)
	i := attach(t, h, Attachment{VM: "a", Egress: true})
	unattended(h)
	m := forward.Mapping{Protocol: forward.TCP, HostPort: 8000, Guest: netip.AddrPortFrom(i.GuestAddr, 80)}
	if err := h.Table().Add(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	want := run(t, "nft", "list", "ruleset")
	for _, damage := range []string{
		"flush chain ip smolvm prerouting",
		"flush chain ip smolvm input; add rule ip smolvm input accept",
		"add chain ip smolvm extra",
		"insert rule ip smolvm prerouting accept",
		"delete table ip6 smolvm",
		"delete chain ip smolvm forward",
		"add table ip smolvm { flags dormant; }",
		"add chain ip smolvm input { policy drop; }",
	} {
		run(t, "nft", damage)
		if err := h.Reap(t.Context()); err != nil {
			t.Fatalf("after %q: %v", damage, err)
		}
		if got := run(t, "nft", "list", "ruleset"); got != want {
			t.Errorf("after %q:\n%s", damage, got)
		}
	}
	// An older version's table, with another kind of map.
	run(t, "nft", "delete table ip smolvm; add table ip smolvm; add map ip smolvm forwards { type inet_service : ipv4_addr; }")
	if err := h.Reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.Table().Add(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "nft", "list", "ruleset"); got != want {
		t.Errorf("after another version's table:\n%s", got)
	}
}

func TestTable(t *testing.T) {
	h := testHost(t)
	a, b := attach(t, h, Attachment{VM: "a"}), attach(t, h, Attachment{VM: "b"})
	table, ctx := h.Table(), t.Context()
	m := forward.Mapping{Protocol: forward.TCP, HostPort: 8000, Guest: netip.AddrPortFrom(a.GuestAddr, 80)}
	other := m
	other.Guest = netip.AddrPortFrom(b.GuestAddr, 80)
	for range 2 { // the same again is no error
		if err := table.Add(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	if err := table.Add(ctx, other); !isMapped(err) {
		t.Errorf("another guest's port could be taken: %v", err)
	}
	if err := table.Delete(ctx, other); err != nil {
		t.Fatal(err)
	}
	if got, err := table.Lookup(ctx, forward.TCP, 8000); err != nil || got != m.Guest {
		t.Errorf("port 8000 goes to %v, %v", got, err)
	}
	for range 2 {
		if err := table.Delete(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := table.Lookup(ctx, forward.TCP, 8000); err != nil || got.IsValid() {
		t.Errorf("port 8000 goes to %v, %v", got, err)
	}
	if err := table.Add(ctx, forward.Mapping{Protocol: "sctp", HostPort: 1, Guest: m.Guest}); err == nil {
		t.Error("sctp was taken")
	}
	// A flushed firewall comes back with the next forward, guards and all.
	want := run(t, "nft", "list", "ruleset")
	run(t, "nft", "flush", "ruleset")
	if err := table.Add(ctx, m); err != nil {
		t.Fatal(err)
	}
	if err := table.Delete(ctx, m); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "nft", "list", "ruleset"); got != want {
		t.Errorf("after flush:\n%s", got)
	}
}

func TestNoDeadGuestsForwardsAreInherited(t *testing.T) {
	h := testHost(t)
	keep := attach(t, h, Attachment{VM: "keep"})
	dead, err := h.Attach(t.Context(), Attachment{VM: "dead"})
	if err != nil {
		t.Fatal(err)
	}
	add := func(port uint16, guest netip.Addr) {
		m := forward.Mapping{Protocol: forward.TCP, HostPort: port, Guest: netip.AddrPortFrom(guest, 80)}
		if err := h.Table().Add(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	unattended(h)
	add(8001, dead.GuestAddr)
	add(8002, keep.GuestAddr)
	dead.file.Close() // as when the process is killed
	lookup := func(port uint16) netip.AddrPort {
		got, err := h.Table().Lookup(t.Context(), forward.TCP, port)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if !lookup(8001).IsValid() {
		t.Fatal("the crash should have left the forward")
	}
	heir := attach(t, h, Attachment{VM: "heir"})
	if heir.GuestAddr != dead.GuestAddr {
		t.Fatalf("heir got %s, not %s", heir.GuestAddr, dead.GuestAddr)
	}
	if lookup(8001).IsValid() {
		t.Error("the new guest got the dead one's forward")
	}
	if !lookup(8002).IsValid() {
		t.Error("a living guest lost its forward")
	}
}

func TestReapAfterCrash(t *testing.T) {
	h := testHost(t)
	before := leftovers(t)
	if err := h.Reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := leftovers(t); after != before {
		t.Errorf("reaping nothing changed\n%s\nto\n%s", before, after)
	}
	i, err := h.Attach(t.Context(), Attachment{VM: "a", Egress: true})
	if err != nil {
		t.Fatal(err)
	}
	unattended(h)
	i.file.Close()
	if after := leftovers(t); after == before {
		t.Fatal("the crash should have left something")
	}
	if err := h.Reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := leftovers(t); after != before {
		t.Errorf("left behind:\n%s", after)
	}
	if err := i.Close(); err != nil {
		t.Error("close after reap:", err)
	}
}

func TestCloseRemovesInterfaceThatMonitorHolds(t *testing.T) {
	h := testHost(t)
	i := attach(t, h, Attachment{VM: "a"})
	guestOn(t, i) // holds a duplicate of the TAP
	for range 2 {
		if err := i.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := net.InterfaceByName(i.Name); err == nil {
		t.Error("the interface is still there")
	}
}

func TestConcurrentAttach(t *testing.T) {
	h := testHost(t)
	type result struct {
		i   *Interface
		err error
	}
	const n = 8
	results := make(chan result)
	for range n {
		go func() {
			i, err := NewHost(Options{RuntimeDir: h.dir}).Attach(t.Context(), Attachment{VM: "x", Egress: true})
			results <- result{i, err}
		}()
	}
	seen := make(map[netip.Addr]bool)
	var open []*Interface
	for range n {
		r := <-results
		if r.err != nil {
			t.Error(r.err)
			continue
		}
		if seen[r.i.GuestAddr] {
			t.Errorf("%s was handed out twice", r.i.GuestAddr)
		}
		seen[r.i.GuestAddr] = true
		open = append(open, r.i)
	}
	closed := make(chan error)
	for _, i := range open {
		go func() { closed <- i.Close() }()
	}
	for range open {
		if err := <-closed; err != nil {
			t.Error(err)
		}
	}
}

func TestNFTProgramAgrees(t *testing.T) {
	h := testHost(t)
	attach(t, h, Attachment{VM: "a", Egress: true})
	// What we write must be what the nft program would write, or people could not
	// work with it.
	listing := run(t, "nft", "list", "ruleset")
	load := exec.Command("unshare", "--net", "sh", "-c", "nft -f - && nft list ruleset")
	load.Stdin = strings.NewReader(listing)
	out, err := load.CombinedOutput()
	if err != nil || string(out) != listing {
		t.Errorf("nft read our rules back as %v\n%s", err, out)
	}
}
