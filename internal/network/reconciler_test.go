package network

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/network/nettest"
)

// TestEverythingIsMended has other programs change each thing that VMs need, and waits
// until all is as it was. That the change was made at all is seen while the lock
// keeps it from being mended.
func TestEverythingIsMended(t *testing.T) {
	h := testHost(t)
	nettest.Neighbour(t, "lan0", "192.0.2.1/24", "192.0.2.2/24", true)
	i := attach(t, h, Attachment{VM: "a", Egress: true})
	attach(t, h, Attachment{VM: "b"})
	damages := []string{
		"nft flush ruleset",
		"nft delete table ip smolvm",
		"nft delete table ip6 smolvm",
		"nft flush chain ip smolvm input",
		"nft insert rule ip smolvm prerouting accept",
		"nft flush set ip smolvm borrowed",
		"nft add table ip smolvm '{ flags dormant; }'",
		"ip route del unreachable 198.18.0.0/16 metric 1073741824",
		"ip route del 198.18.0.0/31 dev smol0",
		"ip addr del 198.18.0.0/31 dev smol0",
		"ip link set smol0 down",
		"ip link set smol0 down; ip link set smol0 name other0; ip link set other0 up",
		"ip link set smol0 alias other",
		"ip link set smol0 group 7",
		"ip link set smol1 group 29549", // lets it reach the world
		"ip link set smol0 mtu 1400",
		"echo 0 >" + ipv4Conf("lan0", "forwarding"),
		"ip link set smol0 down; ip link set smol0 name other0; nft flush ruleset; echo 0 >" + ipv4Conf("lan0", "forwarding"),
	}
	if renamesLive(t) {
		damages = append(damages, "ip link set smol0 name other0")
	}
	for _, s := range tapSettings(i.Name, true) {
		if s.isIPv6() && !hasIPv6() {
			continue
		}
		damages = append(damages, fmt.Sprintf("echo %d >%s", 1^(s.value[0]-'0'), s.path))
	}
	want := needs(t)
	for _, damage := range damages {
		release := holdLock(t, h)
		run(t, "sh", "-c", damage)
		if needs(t) == want {
			t.Errorf("%s: changed nothing", damage)
		}
		release()
		began := time.Now()
		for got := needs(t); got != want; got = needs(t) {
			if time.Since(began) > patience {
				t.Fatalf("%s: was not mended:\n%s\nwant:\n%s", damage, got, want)
			}
		}
		t.Logf("%-60s %v", damage, time.Since(began).Round(time.Millisecond))
	}
}

// renamesLive tells whether this kernel renames interfaces that are up.
func renamesLive(t *testing.T) bool {
	t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cable0"}, PeerName: "cable1"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(veth)
	if err := netlink.LinkSetUp(veth); err != nil {
		t.Fatal(err)
	}
	return netlink.LinkSetName(veth, "cable2") == nil
}

// TestNewUplink has a guest reach the world by what was not there when it came.
func TestNewUplink(t *testing.T) {
	h := testHost(t)
	i := attach(t, h, Attachment{VM: "a", Egress: true})
	guest := guestOn(t, i)
	lan := nettest.Neighbour(t, "lan0", "192.0.2.1/24", "192.0.2.2/24", true)
	go greet(lan.Listen("0.0.0.0:80"))
	wait(t, "the guest reaches the world", func() bool {
		_, err := greeting(impatience, guest.Dial, "192.0.2.2:80")
		return err == nil
	})
	borrowed := func(name string) bool {
		return strings.Contains(run(t, "nft", "list", "set", "ip", "smolvm", "borrowed"), `"`+name+`"`)
	}
	if !borrowed("lan0") {
		t.Error("forwarding is not guarded")
	}
	// Under another name it is the same interface, and still to be guarded.
	run(t, "sh", "-c", "ip link set lan0 down; ip link set lan0 name wan0; ip link set wan0 up; ip route add default via 192.0.2.2")
	t.Cleanup(func() { run(t, "ip", "link", "del", "wan0") })
	wait(t, "the renamed uplink is guarded", func() bool { return borrowed("wan0") && !borrowed("lan0") })
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	if v, err := readSetting(ipv4Conf("wan0", "forwarding")); err != nil || v != "0" {
		t.Errorf("forwarding was not given back: %s, %v", v, err)
	}
}

// TestIdle looks at a Host that nobody disturbs: it must not write anything.
func TestIdle(t *testing.T) {
	h := testHost(t)
	nettest.Neighbour(t, "lan0", "192.0.2.1/24", "192.0.2.2/24", true)
	attach(t, h, Attachment{VM: "a", Egress: true})
	settle(t, h)
	before, lockOpened := generation(t), watchLock(t, h)
	// The kernel has a last word about interfaces within a second of their coming up.
	if !slices.ContainsFunc(make([]bool, 3), func(bool) bool { rest(); return !lockOpened() }) {
		t.Error("it takes the lock again and again")
	}
	if after := generation(t); after != before {
		t.Errorf("rules were written: generation %d, then %d", before, after)
	}
	// Both show when there is something to mend.
	nft(t, "flush ruleset")
	wait(t, "the rules are back", func() bool { return generation(t) >= before+2 && lockOpened() })
}

// TestDeletedInterfaceIsTold deletes one of two guests' interfaces, and then has the other
// go as it does when a VM ends: a moment before it is closed, which is nothing to tell.
func TestDeletedInterfaceIsTold(t *testing.T) {
	h := testHost(t)
	var log nettest.Log
	h.log = slog.New(slog.NewTextHandler(io.MultiWriter(&log, t.Output()), nil))
	i := attach(t, h, Attachment{VM: "a"})
	other := attach(t, h, Attachment{VM: "b"})
	run(t, "ip", "link", "del", i.Name)
	wait(t, "it is told", func() bool { return log.Count("interface is gone") == 1 })
	settle(t, h)
	must(t, other.file.Close())
	wait(t, "the loss is noticed", func() bool { return !h.reconciler.settled() })
	must(t, other.Close())
	if n := log.Count("interface is gone"); n != 1 {
		t.Errorf("it was told %d times", n)
	}
}

// TestLostGuestsForwardsAreForgotten has a guest go without being closed, and another one come
// that gets its address: it has not the forwards of the first, nor does it get them when
// all are put back that are wanted.
func TestLostGuestsForwardsAreForgotten(t *testing.T) {
	h := testHost(t)
	i := attach(t, h, Attachment{VM: "a"})
	m := forward.Mapping{Protocol: forward.TCP, HostPort: 8000, Guest: netip.AddrPortFrom(i.GuestAddr, 80)}
	expose(t, h, m)
	must(t, i.file.Close())
	wait(t, "they are forgotten", func() bool { return !h.wanted.has(m) })
	other := attach(t, h, Attachment{VM: "b"})
	if other.GuestAddr != i.GuestAddr {
		t.Fatalf("the other guest got %s, not %s", other.GuestAddr, i.GuestAddr)
	}
	nft(t, "flush ruleset")
	wait(t, "the guards are back", func() bool { _, guarded := forwardsAndGuards(t); return guarded })
	settle(t, h)
	if forwards, _ := forwardsAndGuards(t); forwards {
		t.Error("the other guest got a forward")
	}
}

// TestGuardsAreNeverLater flushes the rules again and again while forwards are put in,
// and looks all the time: where there is a forward, there are all guards.
func TestGuardsAreNeverLater(t *testing.T) {
	h := testHost(t)
	i := attach(t, h, Attachment{VM: "a"})
	m := forward.Mapping{Protocol: forward.TCP, HostPort: 8000, Guest: netip.AddrPortFrom(i.GuestAddr, 80)}
	if err := h.Table().Add(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if _, guarded := forwardsAndGuards(t); !guarded {
		t.Fatal("the guards are not recognised")
	}
	flushed, looked := make(chan error, 1), make(chan struct{})
	go func() {
		for range 50 {
			<-looked // the look that was going on
			<-looked
			conn, err := netlinkRules()
			if err == nil {
				conn.FlushRuleset()
				err = conn.Flush()
			}
			if err == nil {
				err = h.Table().Add(t.Context(), m)
			}
			if err != nil {
				flushed <- err
				return
			}
		}
		flushed <- nil
	}()
	seen := 0
	for {
		forwards, guarded := forwardsAndGuards(t)
		if forwards {
			seen++
		}
		if forwards && !guarded {
			t.Fatal("there is a forward without guards")
		}
		select {
		case looked <- struct{}{}:
		case err := <-flushed:
			if err != nil {
				t.Fatal(err)
			}
			if seen < 50 {
				t.Errorf("forwards were seen %d times only", seen)
			}
			return
		default:
		}
	}
}

// forwardsAndGuards tells what of both is in the kernel at one moment.
func forwardsAndGuards(t *testing.T) (forwards, guarded bool) {
	t.Helper()
	listing := run(t, "nft", "list", "ruleset") // reads again if it changed meanwhile
	guarded = true
	for _, r := range newRuleset(DefaultPool(), hasIPv6()).rules {
		if comment := commentOf(r); !strings.Contains(listing, comment) {
			guarded = false
		}
	}
	return strings.Contains(listing, "tcp . 8000 "), guarded
}
