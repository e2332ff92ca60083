package guest

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// inNetwork runs test on a thread in a network namespace of its own, which goes
// when the thread does.
func inNetwork(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error("make network namespace: ", err)
			return
		}
		test(t)
	}()
	<-done
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
		runtime.Goexit()
	}
}

// configure configures the network of the namespace that the thread is in.
func configure(n *guestapi.Network) error {
	link, err := ethernet()
	if err != nil {
		return err
	}
	return configureNetwork(link, n, false)
}

func TestConfigureNetwork(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		must(t, configure(nil)) // a guest without a network
		first := &guestapi.Network{Address: netip.MustParsePrefix("198.18.0.3/31"), Gateway: netip.MustParseAddr("198.18.0.2")}
		if err := configure(first); err == nil {
			t.Error("configured an interface that is not there")
		}
		must(t, loopbackUp())
		addEthernet(t, "eth0")

		second := &guestapi.Network{Address: netip.MustParsePrefix("10.0.2.15/24"), Gateway: netip.MustParseAddr("10.0.2.2")}
		for _, n := range []*guestapi.Network{first, first, second, first, second} {
			must(t, configure(n))
			checkNetwork(t, n.Address, n.Gateway)
		}
		// An address next to the wanted one goes, whoever set it.
		eth0, err := netlink.LinkByName("eth0")
		must(t, err)
		stray, err := netlink.ParseAddr("192.0.2.1/24")
		must(t, err)
		must(t, netlink.AddrAdd(eth0, stray))
		must(t, configure(second))
		checkNetwork(t, second.Address, second.Gateway)

		must(t, configure(nil))
		eth0, err = netlink.LinkByName("eth0")
		must(t, err)
		addrs, err := netlink.AddrList(eth0, netlink.FAMILY_V4)
		must(t, err)
		if len(addrs) != 0 || eth0.Attrs().Flags&net.FlagUp != 0 {
			t.Errorf("after no network: %v, %v", addrs, eth0.Attrs().Flags)
		}
		if err := configure(&guestapi.Network{}); err == nil {
			t.Error("configured an empty network")
		}
		bad := &guestapi.Network{Address: first.Address, Gateway: netip.MustParseAddr("203.0.113.1")}
		if err := configure(bad); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("a gateway out of reach: %v", err)
		}
	})
}

// addEthernet adds the guest's end of a link whose other end is in a namespace of
// its own, which goes when the test does.
func addEthernet(t *testing.T, name string) {
	t.Helper()
	here, err := netns.Get()
	must(t, err)
	defer here.Close()
	there, err := netns.New() // and this thread is in it
	must(t, err)
	t.Cleanup(func() { there.Close() })
	must(t, netns.Set(here))
	must(t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "host", PeerNamespace: netlink.NsFd(there),
	}))
}

func checkNetwork(t *testing.T, address netip.Prefix, gateway netip.Addr) {
	t.Helper()
	eth0, err := netlink.LinkByName("eth0")
	must(t, err)
	addrs, err := netlink.AddrList(eth0, netlink.FAMILY_V4)
	must(t, err)
	if len(addrs) != 1 || addrs[0].IPNet.String() != address.String() {
		t.Errorf("addresses %v, want %v", addrs, address)
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	must(t, err)
	gateways := slices.Collect(func(yield func(string) bool) {
		for _, r := range routes {
			if !yield(r.Gw.String()) {
				return
			}
		}
	})
	if !slices.Equal(gateways, []string{gateway.String()}) {
		t.Errorf("default routes via %v, want %v", gateways, gateway)
	}
}

// The interface has no address that the kernel made up, and loopback keeps its own.
func TestWithoutIPv6(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		must(t, withoutIPv6()) // a guest without a network
		addEthernet(t, "eth0")
		must(t, withoutIPv6())
		must(t, loopbackUp())
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6", []byte("0"), 0))
		must(t, configure(&guestapi.Network{Address: netip.MustParsePrefix("198.18.0.3/31"), Gateway: netip.MustParseAddr("198.18.0.2")}))
		for name, want := range map[string]int{"eth0": 0, "lo": 1} {
			link, err := netlink.LinkByName(name)
			must(t, err)
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
			must(t, err)
			if len(addrs) != want {
				t.Errorf("%s has %v", name, addrs)
			}
		}
	})
}

func TestLoopbackUp(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		defer l.Close()
		if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
			conn.Close()
			t.Error("loopback works before")
		}
		must(t, loopbackUp())
		conn, err := net.Dial("tcp", l.Addr().String())
		must(t, err)
		conn.Close()
	})
}

// A device that comes is noticed by the event, and one that does not ends with ctx.
func TestAwaitDevice(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		looked := 0
		name, err := awaitDevice(t.Context(), func() (string, error) {
			looked++
			if _, err := os.Stat("/sys/class/net"); err != nil {
				return "", err
			}
			if _, err := netlink.LinkByName("late"); err == nil {
				return "late", nil
			}
			// Creating it sends an event, of which this look knows nothing yet.
			must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "late"}, PeerName: "peer"}))
			return "", os.ErrNotExist
		})
		if err != nil || name != "late" || looked < 2 {
			t.Errorf("got %q, %v after %d looks", name, err, looked)
		}
		ctx, cancel := context.WithCancel(t.Context())
		_, err = awaitDevice(ctx, func() (string, error) {
			cancel()
			return "", os.ErrNotExist
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		broken := errors.New("broken")
		if _, err := awaitDevice(t.Context(), func() (string, error) { return "", broken }); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	})
}

// The kernel is asked, and tells which sockets IPv4 does not reach.
func TestSockets(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		must(t, loopbackUp())
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6", []byte("0"), 0))
		ports := make(map[string]uint16)
		for _, at := range []string{"tcp4 127.0.0.1", "tcp4 0.0.0.0", "tcp6 ::1", "tcp6 ::", "tcp ::", "udp4 127.0.0.1", "udp4 0.0.0.0", "udp6 ::1", "udp6 ::", "udp ::"} {
			network, host, _ := strings.Cut(at, " ")
			address := net.JoinHostPort(host, "0")
			if strings.HasPrefix(network, "tcp") {
				l, err := net.Listen(network, address)
				must(t, err)
				defer l.Close()
				ports[at] = uint16(l.Addr().(*net.TCPAddr).Port)
				continue
			}
			c, err := net.ListenPacket(network, address)
			must(t, err)
			defer c.Close()
			ports[at] = uint16(c.LocalAddr().(*net.UDPAddr).Port)
		}
		client, err := net.Dial("udp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(ports["udp4 127.0.0.1"])))) // takes from one only
		must(t, err)
		defer client.Close()

		table := &socketTable{proc: "/proc/thread-self/net"}
		const loopback, network = guestapi.ScopeLoopback, guestapi.ScopeNetwork
		// The text does not tell of what the kernel answers.
		for onlyV6, mute := range map[guestapi.Scope]bool{loopback: false, network: true} {
			table.mute = mute
			got, err := table.report()
			must(t, err)
			if table.mute != mute {
				t.Error("the kernel does not answer")
			}
			tcp := map[uint16]guestapi.Scope{
				ports["tcp4 127.0.0.1"]: loopback, ports["tcp4 0.0.0.0"]: network, ports["tcp6 ::1"]: loopback, ports["tcp6 ::"]: onlyV6, ports["tcp ::"]: network,
			}
			udp := map[uint16]guestapi.Scope{
				ports["udp4 127.0.0.1"]: loopback, ports["udp4 0.0.0.0"]: network, ports["udp6 ::1"]: loopback, ports["udp6 ::"]: onlyV6, ports["udp ::"]: network,
			}
			if !maps.Equal(got.TCP, tcp) || !maps.Equal(got.UDP, udp) {
				t.Errorf("mute %v: got %v, want %v and %v", mute, got, tcp, udp)
			}
		}
	})
}

// Without a network the SSH server is reached through loopback, and else through the
// network alone.
func TestListen(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		must(t, loopbackUp())
		addEthernet(t, "eth0")
		n := &guestapi.Network{Address: netip.MustParsePrefix("198.18.0.3/31"), Gateway: netip.MustParseAddr("198.18.0.2")}
		must(t, configure(n))
		log := slog.New(slog.DiscardHandler)
		s := &system{log: log}
		s.server = NewServer(s, nil, log)
		defer func() { s.listener.Close() }()
		answers := func(address string) bool {
			conn, err := net.Dial("tcp", address)
			if err == nil {
				conn.Close()
			}
			return err == nil
		}
		const loopback, network = "127.0.0.1:22", "198.18.0.3:22"
		for _, n := range []*guestapi.Network{nil, nil, n, n, nil, n} {
			s.listen(n)
			if answers(loopback) != (n == nil) || answers(network) != (n != nil) {
				t.Errorf("network %v: loopback %v, network %v", n != nil, answers(loopback), answers(network))
			}
			conn, err := dial(t.Context(), guestapi.Dial{Host: "localhost", Port: guestapi.SSHPort})
			must(t, err)
			conn.Close()
		}
	})
}
