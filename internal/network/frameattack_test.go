package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func hostMAC(t *testing.T, link string) net.HardwareAddr {
	t.Helper()
	ifc, err := net.InterfaceByName(link)
	if err != nil {
		t.Fatal(err)
	}
	return ifc.HardwareAddr
}

// TestGuestOpensConnectionAsLocalhost has a guest send a SYN from 127.0.0.1, as a service
// on the host's loopback that trusts its own host would take it. It arrives if the
// listener's answer is seen, which leaves by the loopback interface.
func TestGuestOpensConnectionAsLocalhost(t *testing.T) {
	s := newScene(t)
	unattended(s.host)
	set(t, ipv4Conf(s.a.Name, "rp_filter"), "0")
	set(t, ipv4Conf("all", "rp_filter"), "0")
	set(t, ipv4Conf(s.a.Name, "accept_local"), "1")
	wireA, loopback := framesOn(t, s.guestA, "eth0"), framesOn(t, nil, "lo")
	localhost := netip.MustParseAddr("127.0.0.1")
	mac := hostMAC(t, s.a.Name)
	port := uint16(4100)
	try := func(to netip.AddrPort, limit time.Duration) error {
		port++
		if err := wireA.send(mac, unix.ETH_P_IP, tcpSYN(netip.AddrPortFrom(localhost, port), to)); err != nil {
			t.Fatal(err)
		}
		return loopback.await(limit, func(protocol uint16, p []byte) bool {
			const synAck = 2 | 16
			return protocol == unix.ETH_P_IP && len(p) >= 40 && p[9] == unix.IPPROTO_TCP && p[33]&synAck == synAck &&
				binary.BigEndian.Uint16(p[22:]) == port
		})
	}
	for _, to := range []netip.AddrPort{
		netip.MustParseAddrPort(s.localOnly), netip.AddrPortFrom(s.a.HostAddr, 7002), netip.MustParseAddrPort("192.0.2.1:7002"),
	} {
		t.Run(to.String(), func(t *testing.T) {
			nft(t, "flush chain ip smolvm prerouting; flush chain ip smolvm input")
			if err := try(to, patience); err != nil {
				t.Errorf("with the guards out it should arrive: %v", err)
			}
			if err := s.host.Reap(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := try(to, impatience); err == nil {
				t.Error("it arrives")
			}
		})
	}
}

// TestIPv6LinkLocal has a guest ping the host's link-local address, which an interface
// has as soon as somebody switches IPv6 on.
func TestIPv6LinkLocal(t *testing.T) {
	if !hasIPv6() {
		t.Skip("this kernel has no IPv6")
	}
	h := testHost(t)
	i := attach(t, h, Attachment{VM: "a", Egress: true})
	unattended(h)
	guest := guestOn(t, i)
	set(t, ipv6Conf(i.Name, "accept_dad"), "0")
	set(t, ipv6Conf(i.Name, "disable_ipv6"), "0")
	own, guestsOwn := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::2")
	run(t, "ip", "-6", "addr", "add", own.String()+"/64", "dev", i.Name, "nodad")
	run(t, "ip", "-6", "neigh", "replace", guestsOwn.String(), "lladdr", i.GuestMAC.String(), "dev", i.Name)
	frames := framesOn(t, guest, "eth0")
	try := func(limit time.Duration) error {
		if err := frames.send(hostMAC(t, i.Name), unix.ETH_P_IPV6, ping6(guestsOwn, own)); err != nil {
			t.Fatal(err)
		}
		return frames.await(limit, func(protocol uint16, p []byte) bool {
			const echoReply = 129
			return protocol == unix.ETH_P_IPV6 && len(p) >= 48 && p[6] == unix.IPPROTO_ICMPV6 && p[40] == echoReply
		})
	}
	nft(t, "delete table ip6 smolvm")
	if err := try(patience); err != nil {
		t.Errorf("with the guard out it should be answered: %v", err)
	}
	if err := h.Reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := try(impatience); err == nil {
		t.Error("the host answers")
	}
}

// TestARP has guest C claim the addresses of guest A, of a LAN neighbour and of the host.
// What the host sends to those must not come to it. The guard is that each guest has a
// wire of its own, and the host knows which address is on which: with it out, the host
// takes the address to be on C's wire.
func TestARP(t *testing.T) {
	s := newScene(t)
	unattended(s.host)
	liar := framesOn(t, s.guestC, "eth0")
	claim := func(a netip.Addr) {
		for _, operation := range []uint16{1, 2} { // announced as a question, and as an answer
			if err := liar.send(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, unix.ETH_P_ARP, arp(operation, liar.mac, a, a)); err != nil {
				t.Error(err)
			}
		}
	}
	// steals claims the address now and whenever anybody asks for it, and tells
	// whether something that is sent to it arrives.
	steals := func(a netip.Addr, limit time.Duration) error {
		claim(a)
		var here net.Dialer
		var client sync.WaitGroup
		client.Go(func() { _, _ = greeting(limit, here.DialContext, netip.AddrPortFrom(a, 81).String()) })
		defer client.Wait()
		return liar.await(limit, func(protocol uint16, p []byte) bool {
			if protocol == unix.ETH_P_ARP && len(p) >= 28 && p[7] == 1 && netip.AddrFrom4([4]byte(p[24:28])) == a {
				claim(a)
			}
			return protocol == unix.ETH_P_IP && len(p) >= 20 && netip.AddrFrom4([4]byte(p[16:20])) == a
		})
	}
	for _, victim := range []struct{ name, addr, disarm, arm string }{
		{"other guest", s.a.GuestAddr.String(), "ip route add $addr dev $liar", "ip route del $addr dev $liar"},
		{"neighbour", "192.0.2.2", "ip route add $addr dev $liar", "ip route del $addr dev $liar"},
		{"host", "192.0.2.1", "ip addr del $addr/24 dev lan0; ip route add $addr dev $liar",
			"ip route del $addr dev $liar; ip addr add $addr/24 dev lan0; ip route add default via 192.0.2.2"},
		{"its own gateway", s.c.HostAddr.String(), "ip addr del $addr/31 dev $liar; ip route add $addr dev $liar",
			"ip route del $addr dev $liar; ip addr add $addr/31 dev $liar"},
	} {
		t.Run(victim.name, func(t *testing.T) {
			addr := netip.MustParseAddr(victim.addr)
			script := strings.NewReplacer("$addr", victim.addr, "$liar", s.c.Name)
			if err := steals(addr, impatience); err == nil {
				t.Errorf("what is for %s comes to the liar", addr)
			}
			run(t, "sh", "-ec", script.Replace(victim.disarm))
			if err := steals(addr, time.Second); err != nil {
				t.Errorf("with the guard out it should come: %v", err)
			}
			run(t, "sh", "-ec", script.Replace(victim.arm))
			run(t, "ip", "neigh", "flush", "dev", s.c.Name)
		})
	}
	t.Run("host tells of nobody", func(t *testing.T) {
		answered := func(a netip.Addr, limit time.Duration) error {
			if err := liar.send(hostMAC(t, s.c.Name), unix.ETH_P_ARP, arp(1, liar.mac, s.c.GuestAddr, a)); err != nil {
				t.Fatal(err)
			}
			return liar.await(limit, func(protocol uint16, p []byte) bool {
				return protocol == unix.ETH_P_ARP && len(p) >= 28 && p[7] == 2 && netip.AddrFrom4([4]byte(p[14:18])) == a
			})
		}
		if err := answered(s.c.HostAddr, patience); err != nil {
			t.Errorf("its gateway should answer: %v", err)
		}
		others := []netip.Addr{netip.MustParseAddr("192.0.2.1"), s.a.HostAddr}
		for _, a := range others {
			if err := answered(a, impatience); err == nil {
				t.Errorf("the host tells that it has %s", a)
			}
		}
		set(t, ipv4Conf(s.c.Name, "arp_ignore"), "0")
		for _, a := range others {
			if err := answered(a, patience); err != nil {
				t.Errorf("without arp_ignore it should tell that it has %s: %v", a, err)
			}
		}
	})
}
