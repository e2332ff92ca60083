package network

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/network/nettest"
)

const (
	// patience is how long something that works may take, on a busy machine.
	patience = 10 * time.Second
	// impatience is how long something that must not work is tried for. On these wires
	// an answer takes well under a millisecond.
	impatience = 250 * time.Millisecond
)

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// greet says hello to everybody who connects.
func greet(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprintf(c, "hello %s", c.RemoteAddr())
		c.Close()
	}
}

// greeting connects and returns what is said, within a time.
func greeting(limit time.Duration, dial dialFunc, address string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := dial(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	b, err := io.ReadAll(c)
	return string(b), err
}

func listenHere(t *testing.T, address string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go greet(l)
}

func nft(t *testing.T, command string) {
	t.Helper()
	run(t, "nft", command)
}

// set changes a kernel setting until the test ends.
func set(t *testing.T, path, value string) {
	t.Helper()
	old, err := readSetting(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The interface may be gone, and the setting with it.
		if err := os.WriteFile(path, []byte(old), 0); err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
	})
}

// sendLocalhostOut makes a namespace use 127/8 like any other network, by a gateway.
func sendLocalhostOut(n *nettest.Namespace, gateway string) {
	n.Run("ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
	n.Run("ip", "route", "add", "127.0.0.0/8", "via", gateway)
	n.Sysctl("ipv4/conf/all/route_localnet", "1")
	n.Sysctl("ipv4/conf/all/rp_filter", "0")
	n.Sysctl("ipv4/conf/eth0/rp_filter", "0")
}

// scene is a host with a LAN, two guests that may reach the world and one that may not.
type scene struct {
	host      *Host
	lan       *nettest.Namespace // 192.0.2.2; the host is 192.0.2.1
	otherLAN  *nettest.Namespace // 198.51.100.2, behind the host
	a, b, c   *Interface
	guestA    *nettest.Namespace
	guestC    *nettest.Namespace
	hostPort  uint16 // exposes guest A's port 80
	localOnly string // a service on the host's 127.0.0.1
}

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{host: testHost(t), hostPort: 8000, localOnly: "127.0.0.1:7001"}
	s.lan = nettest.Neighbour(t, "lan0", "192.0.2.1/24", "192.0.2.2/24", true)
	s.otherLAN = nettest.Neighbour(t, "lan1", "198.51.100.1/24", "198.51.100.2/24", false)
	s.a = attach(t, s.host, Attachment{VM: "a", Egress: true})
	s.b = attach(t, s.host, Attachment{VM: "b", Egress: true})
	s.c = attach(t, s.host, Attachment{VM: "c"})
	s.guestA, s.guestC = guestOn(t, s.a), guestOn(t, s.c)
	guestB := guestOn(t, s.b)
	for _, n := range []*nettest.Namespace{s.guestA, guestB, s.lan, s.otherLAN} {
		go greet(n.Listen("0.0.0.0:80"))
	}
	listenHere(t, s.localOnly)
	listenHere(t, "0.0.0.0:7002")
	err := s.host.Table().Add(t.Context(), forward.Mapping{
		Protocol: forward.TCP, HostPort: s.hostPort, Guest: netip.AddrPortFrom(s.a.GuestAddr, 80),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWhatMustWork(t *testing.T) {
	s := newScene(t)
	var here net.Dialer
	for _, test := range []struct {
		name    string
		dial    dialFunc
		address string
		from    string
	}{
		{"exposed port", here.DialContext, "127.0.0.1:8000", s.a.HostAddr.String()},
		{"guest's address", here.DialContext, s.a.GuestAddr.String() + ":80", s.a.HostAddr.String()},
		{"egress", s.guestA.Dial, "192.0.2.2:80", "192.0.2.1"},
	} {
		got, err := greeting(patience, test.dial, test.address)
		if err != nil || !strings.HasPrefix(got, "hello "+test.from+":") {
			t.Errorf("%s: %q, %v", test.name, got, err)
		}
	}
	if err := ping(s.guestA, s.a.HostAddr); err != nil {
		t.Error("gateway:", err)
	}
}

// ping sends an echo request from a namespace and waits for the reply.
func ping(from *nettest.Namespace, to netip.Addr) error {
	var c net.Conn
	err := from.Try(func() (err error) {
		c, err = net.Dial("ip4:icmp", to.String())
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	request := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0} // with its checksum
	if _, err := c.Write(request); err != nil {
		return err
	}
	reply := make([]byte, 128)
	n, _, err := c.(*net.IPConn).ReadFromIP(reply) // without the IP header
	if err == nil && (n < 1 || reply[0] != 0) {
		err = fmt.Errorf("not an echo reply: %x", reply[:n])
	}
	return err
}

// TestAttacks tries each attack with the guard taken out, when it must succeed,
// and then with the guard in.
func TestAttacks(t *testing.T) {
	s := newScene(t)
	unattended(s.host)
	// Of the kernel's own defences, those that another program may have switched
	// off are off.
	set(t, ipv4Conf("lan0", "route_localnet"), "1")
	for _, i := range []*Interface{s.a, s.c} {
		set(t, ipv4Conf(i.Name, "rp_filter"), "0")
		set(t, ipv4Conf(i.Name, "accept_local"), "1")
	}
	set(t, ipv4Conf("all", "rp_filter"), "0")
	sendLocalhostOut(s.guestA, s.a.HostAddr.String())
	sendLocalhostOut(s.lan, "192.0.2.1")
	s.lan.Run("ip", "route", "add", "198.18.0.0/16", "via", "192.0.2.1")
	s.lan.Run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.1")
	s.lan.Run("ip", "addr", "add", "169.254.169.254/32", "dev", "eth0")
	s.otherLAN.Run("ip", "route", "add", "default", "via", "198.51.100.1")
	run(t, "ip", "route", "add", "169.254.0.0/16", "via", "192.0.2.2")
	set(t, ipv4Conf("lan1", "forwarding"), "1")

	connect := func(dial dialFunc, address string) func(time.Duration) error {
		return func(limit time.Duration) error {
			_, err := greeting(limit, dial, address)
			return err
		}
	}
	spoof := func(source netip.Addr) func(time.Duration) error {
		return func(limit time.Duration) error { return spoofedDatagramArrives(t, s, source, limit) }
	}
	for _, attack := range []struct {
		name   string
		disarm []string // takes the guards out
		try    func(limit time.Duration) error
	}{
		{"guest to host's loopback", []string{"flush chain ip smolvm prerouting", "flush chain ip smolvm input"},
			connect(s.guestA.Dial, s.localOnly)},
		{"guest to exposed port's listener", []string{"flush chain ip smolvm prerouting", "flush chain ip smolvm input"},
			connect(s.guestA.Dial, "127.0.0.1:7002")},
		{"guest to host's LAN address", []string{"flush chain ip smolvm input"},
			connect(s.guestA.Dial, "192.0.2.1:7002")},
		{"guest to its gateway", []string{"flush chain ip smolvm input"},
			connect(s.guestA.Dial, s.a.HostAddr.String()+":7002")},
		{"guest to other guest", []string{"flush chain ip smolvm forward"},
			connect(s.guestA.Dial, s.b.GuestAddr.String()+":80")},
		{"guest to metadata", []string{"flush chain ip smolvm forward"},
			connect(s.guestA.Dial, "169.254.169.254:80")},
		{"spoofed localhost", []string{"flush chain ip smolvm prerouting", "flush chain ip smolvm input"},
			spoof(netip.MustParseAddr("127.0.0.1"))},
		{"spoofed other guest", []string{"flush chain ip smolvm prerouting", "flush chain ip smolvm input"},
			spoof(s.b.GuestAddr)},
		{"neighbour to exposed port by LAN address", []string{
			// What would happen if the rule stood in prerouting.
			"add chain ip smolvm naive { type nat hook prerouting priority -100; }",
			"add rule ip smolvm naive iifname lan0 dnat ip to meta l4proto . th dport map @forwards",
			"flush chain ip smolvm forward",
		}, connect(s.lan.Dial, "192.0.2.1:8000")},
		{"neighbour to localhost by host's MAC", []string{"flush chain ip smolvm prerouting"},
			connect(s.lan.Dial, s.localOnly)},
		{"neighbour to guest's address", []string{"flush chain ip smolvm forward"},
			connect(s.lan.Dial, s.a.GuestAddr.String()+":80")},
		{"neighbour through the host to another network", []string{"flush chain ip smolvm forward"},
			connect(s.lan.Dial, "198.51.100.2:80")},
	} {
		t.Run(attack.name, func(t *testing.T) {
			for _, command := range attack.disarm {
				nft(t, command)
			}
			if err := attack.try(patience); err != nil {
				t.Errorf("with the guard out it should work: %v", err)
			}
			if err := s.host.Reap(t.Context()); err != nil { // puts the guard back
				t.Fatal(err)
			}
			if err := attack.try(impatience); err == nil {
				t.Error("it works")
			}
		})
	}
}

// spoofedDatagramArrives sends a datagram with a false source from guest A to the
// host and waits for it.
func spoofedDatagramArrives(t *testing.T, s *scene, source netip.Addr, limit time.Duration) error {
	t.Helper()
	service, err := net.ListenUDP("udp4", &net.UDPAddr{})
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	port := service.LocalAddr().(*net.UDPAddr).Port
	dst := s.a.HostAddr.As4()
	s.guestA.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, datagram(source.As4(), dst, uint16(port), "boo"), 0, &unix.SockaddrInet4{Addr: dst})
	})
	service.SetReadDeadline(time.Now().Add(limit))
	buf := make([]byte, 16)
	_, from, err := service.ReadFromUDPAddrPort(buf)
	if err == nil && from.Addr().Unmap() != source {
		t.Errorf("datagram came from %s", from)
	}
	return err
}

// datagram is an IPv4 packet with UDP in it, without checksums that matter: the kernel
// fills in the one of a raw packet's IP header, and 0 means none in UDP.
func datagram(src, dst [4]byte, port uint16, text string) []byte {
	p := make([]byte, 28, 28+len(text))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(text)))
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	binary.BigEndian.PutUint16(p[20:], 4242)
	binary.BigEndian.PutUint16(p[22:], port)
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(text)))
	return append(p, text...)
}

func TestNoEgress(t *testing.T) {
	s := newScene(t)
	unattended(s.host)
	try := func(limit time.Duration) error {
		_, err := greeting(limit, s.guestC.Dial, "192.0.2.2:80")
		return err
	}
	if err := try(impatience); err == nil {
		t.Error("a guest without egress reaches the LAN")
	}
	// Some program makes the host a router, guests' interfaces included.
	set(t, "/proc/sys/net/ipv4/ip_forward", "1")
	nft(t, "flush chain ip smolvm forward")
	if err := try(patience); err != nil {
		t.Errorf("with the guard out it should work: %v", err)
	}
	if err := s.host.Reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := try(impatience); err == nil {
		t.Error("a guest without egress reaches the LAN through a router")
	}
}

func TestIPv6StaysShut(t *testing.T) {
	if !hasIPv6() {
		t.Skip("this kernel has no IPv6")
	}
	h := testHost(t)
	i := attach(t, h, Attachment{VM: "a", Egress: true})
	unattended(h)
	guest := guestOn(t, i)
	set(t, ipv6Conf(i.Name, "accept_dad"), "0")
	// As "sysctl net.ipv6.conf.all.disable_ipv6=0" does.
	set(t, ipv6Conf(i.Name, "disable_ipv6"), "0")
	guest.Sysctl("ipv6/conf/eth0/accept_dad", "0")
	run(t, "ip", "-6", "addr", "add", "fd00::1/64", "dev", i.Name, "nodad")
	guest.Run("ip", "-6", "addr", "add", "fd00::2/64", "dev", "eth0", "nodad")
	listenHere(t, "[fd00::1]:7003")
	try := func(limit time.Duration) error {
		_, err := greeting(limit, guest.Dial, "[fd00::1]:7003")
		return err
	}
	nft(t, "delete table ip6 smolvm")
	if err := try(patience); err != nil {
		t.Errorf("with the guard out it should work: %v", err)
	}
	if err := h.Reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := try(impatience); err == nil {
		t.Error("guests have IPv6")
	}
}

func TestForwardingIsBorrowedAndGivenBack(t *testing.T) {
	h := testHost(t)
	nettest.Neighbour(t, "lan0", "192.0.2.1/24", "192.0.2.2/24", true)
	value := func() string {
		v, err := readSetting(ipv4Conf("lan0", "forwarding"))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	borrowed := func() bool {
		return strings.Contains(run(t, "nft", "list", "set", "ip", "smolvm", "borrowed"), `"lan0"`)
	}
	none := attach(t, h, Attachment{VM: "none"})
	if value() != "0" || borrowed() {
		t.Error("forwarding was switched on for a guest without egress")
	}
	a, err := h.Attach(t.Context(), Attachment{VM: "a", Egress: true})
	if err != nil {
		t.Fatal(err)
	}
	if value() != "1" || !borrowed() {
		t.Error("forwarding was not switched on, or is not guarded")
	}
	a.file.Close() // a crash
	if err := none.Close(); err != nil {
		t.Fatal(err)
	}
	if value() != "0" {
		t.Error("forwarding was not switched off")
	}

	// If the host becomes a router meanwhile, that is not undone.
	b := attach(t, h, Attachment{VM: "b", Egress: true})
	set(t, "/proc/sys/net/ipv4/ip_forward", "1")
	if err := h.Reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if borrowed() {
		t.Error("a router's forwarding is restricted")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if value() != "1" {
		t.Error("a router's forwarding was switched off")
	}
}
