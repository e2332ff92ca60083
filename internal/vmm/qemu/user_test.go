package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/sockdir"
	"github.com/smolvm/smolvm/internal/vmm"
)

const (
	configEnv = "SMOLVM_QEMU_TEST_CONFIG" // the machine for a helper, as JSON
	plainEnv  = "SMOLVM_QEMU_TEST_PLAIN"  // set: without our isolation
	ordersEnv = "SMOLVM_QEMU_TEST_ORDERS" // what the guest is to do, a line each

	// testUser is nobody in particular, without rights to anything.
	testUser = 61234
	testPort = "7777"
)

func marshal(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func readConfig() (config vmm.Config, err error) {
	return config, json.Unmarshal([]byte(os.Getenv(configEnv)), &config)
}

// helpUser starts a machine with a user-mode network and prints what its guest
// answers to orders.
func helpUser() error {
	config, err := readConfig()
	if err != nil {
		return err
	}
	ctx := context.Background()
	var conn *remote
	if os.Getenv(plainEnv) != "" {
		end, err := startPlain(ctx, config)
		if err != nil {
			return err
		}
		defer end()
		dir, err := sockdir.Open(config.Dir)
		if err != nil {
			return err
		}
		channel, err := dir.Dial(ctx, channelSocket)
		if err != nil {
			return err
		}
		conn = newRemote(channel)
	} else {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		m, err := NewDriver(Options{Log: log}).Start(ctx, config)
		if err != nil {
			return err
		}
		defer m.Kill() //nolint:errcheck // it ends with this process anyway
		if conn, err = callGuest(ctx, m); err != nil {
			return err
		}
	}
	network := UserNetwork()
	answers := []string{}
	for _, order := range append([]string{fmt.Sprintf("net %s %s", network.Address, network.Gateway)},
		strings.Split(os.Getenv(ordersEnv), "\n")...) {
		answer, err := conn.do(order)
		if err != nil {
			return err
		}
		answers = append(answers, answer)
	}
	fmt.Println(strings.Join(answers, "\n"))
	return nil
}

// startPlain starts QEMU with its user-mode network as everybody does, in the
// host's network: what our isolation is there to prevent.
func startPlain(ctx context.Context, config vmm.Config) (end func(), err error) {
	dir, err := sockdir.Open(config.Dir)
	if err != nil {
		return nil, err
	}
	var files inheritance
	l := launch{Config: config, Egress: true}
	for socket, fd := range map[string]*int{monitorSocket: &l.Monitor, channelSocket: &l.Channel, consoleSocket: &l.Console} {
		f, err := dir.Listen(ctx, socket)
		if err != nil {
			return nil, err
		}
		*fd = files.add(f)
	}
	console, err := dir.Dial(ctx, consoleSocket)
	if err != nil {
		return nil, err
	}
	go io.Copy(io.Discard, console)                         //nolint:errcheck // until this process ends
	if _, err := dir.Dial(ctx, monitorSocket); err != nil { // QEMU waits for it
		return nil, err
	}
	if l.TSCKHz, err = tscFrequency(ctx, ""); err != nil {
		return nil, err
	}
	args, err := arguments(l)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(defaultBinary, args...)
	cmd.ExtraFiles, cmd.Stderr = files.files, os.Stderr
	p, err := startProcess(cmd, false)
	if err != nil {
		return nil, err
	}
	return func() { _ = p.kill() }, nil
}

// neighbourhood is a host and its neighbour, which is also the way to everywhere.
type neighbourhood struct{ host, neighbour netns.NsHandle }

// inNamespace runs f on a thread in a network namespace.
func inNamespace(t *testing.T, ns netns.NsHandle, f func() error) {
	t.Helper()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	var ns netns.NsHandle
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		var err error
		ns, err = netns.New()
		result <- err
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// up gives an interface addresses and switches it on.
func up(name string, addresses ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		address, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, address); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

func newNeighbourhood(t *testing.T) neighbourhood {
	n := neighbourhood{newNamespace(t), newNamespace(t)}
	inNamespace(t, n.host, func() error {
		return errors.Join(
			netlink.LinkAdd(&netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: "lan"}, PeerName: "lan", PeerNamespace: netlink.NsFd(n.neighbour),
			}),
			up("lo"), up("lan", "203.0.113.2/24"),
			netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("203.0.113.1")}),
		)
	})
	inNamespace(t, n.neighbour, func() error {
		return errors.Join(up("lo", "169.254.169.254/32", "198.18.0.5/32"), up("lan", "203.0.113.1/24"))
	})
	serve(t, n.host, "host", testPort)
	serve(t, n.neighbour, "neighbour", testPort)
	serve(t, n.neighbour, "nameserver", "53")
	return n
}

// serve answers every line with a name, on all of a namespace's addresses.
func serve(t *testing.T, ns netns.NsHandle, name, port string) {
	inNamespace(t, ns, func() error {
		tcp, err := net.Listen("tcp4", "0.0.0.0:"+port)
		if err != nil {
			return err
		}
		udp, err := net.ListenPacket("udp4", "0.0.0.0:"+port)
		if err != nil {
			return errors.Join(err, tcp.Close())
		}
		done := make(chan struct{}, 2)
		go func() {
			defer func() { done <- struct{}{} }()
			for {
				conn, err := tcp.Accept()
				if err != nil {
					return
				}
				_, _ = fmt.Fprintln(conn, name) // the guest tells what came
				_, _ = bufio.NewReader(conn).ReadString('\n')
				_ = conn.Close()
			}
		}()
		go func() {
			defer func() { done <- struct{}{} }()
			b := make([]byte, 100)
			for {
				_, from, err := udp.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = udp.WriteTo([]byte(name+"\n"), from)
			}
		}()
		t.Cleanup(func() {
			if err := errors.Join(tcp.Close(), udp.Close()); err != nil {
				t.Error(err)
			}
			<-done
			<-done
		})
		return nil
	})
}

// run runs a guest as an unprivileged user of the host and returns its answers.
func (n neighbourhood) run(t *testing.T, plain bool, orders ...string) []string {
	t.Helper()
	config := testConfig(t)
	// A test's own directory is not open to other users.
	dir, err := os.MkdirTemp("", "smolvm-qemu-user-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}()
	config.Dir = filepath.Join(dir, "vm")
	err = errors.Join(os.Chmod(dir, 0o755), os.Mkdir(config.Dir, 0o700), os.Chown(config.Dir, testUser, testUser),
		os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver 203.0.113.1\n"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	config.Network = vmm.Network{Mode: vmm.NetworkUser, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close() //nolint:errcheck // only executed
	// A name server that is within the test, and /dev/net/tun as it is on Debian: open to all.
	cmd := exec.Command("unshare", "--mount", "sh", "-ec", `
		mount --bind "$1/resolv.conf" /etc/resolv.conf
		mknod -m 666 "$1/tun" c 10 200
		mount --bind "$1/tun" /dev/net/tun
		exec setpriv --reuid "$2" --regid "$2" --clear-groups /proc/self/fd/3`,
		"sh", dir, fmt.Sprint(testUser))
	cmd.ExtraFiles = []*os.File{program}
	cmd.Env = append(os.Environ(), helperEnv+"=user", configEnv+"="+marshal(t, config), ordersEnv+"="+strings.Join(orders, "\n"))
	if plain {
		cmd.Env = append(cmd.Env, plainEnv+"=1")
	}
	cmd.Stderr = t.Output()
	var output []byte
	inNamespace(t, n.host, func() error {
		// The namespace is the thread's, so the child is started here.
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		var err error
		output, err = cmd.Output()
		return err
	})
	answers := strings.Split(strings.TrimSpace(string(output)), "\n")
	if len(answers) != len(orders)+1 || answers[0] != config.Network.MAC.String() {
		t.Fatalf("the guest answers %q", answers)
	}
	return answers[1:]
}

func TestUserNetwork(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make a network to test in")
	}
	n := newNeighbourhood(t)
	attacks := []string{
		"tcp " + userGateway.String(), "udp " + userGateway.String(), // QEMU's word for the host's loopback
		"tcp 127.0.0.1", "udp 127.0.0.1", "udp 255.255.255.255",
		"tcp 203.0.113.2", "udp 203.0.113.2", // the host's own address
		"tcp 169.254.169.254", // the cloud's secrets
		"tcp 198.18.0.5",      // another VM
		"tcp " + egressNetwork.Addr().Next().Next().String(), // slirp4netns's word for the host's loopback
	}
	order := "dial"
	for _, attack := range attacks {
		order += " " + attack + ":" + testPort
	}
	t.Run("control", func(t *testing.T) {
		t.Parallel()
		answers := strings.Split(n.run(t, true, order)[0], "|")
		for i, attack := range attacks[:len(attacks)-1] {
			if a := answers[i]; a != "host" && a != "neighbour" {
				t.Errorf("%s fails without our isolation: %s", attack, a)
			}
		}
	})
	t.Run("isolated", func(t *testing.T) {
		t.Parallel()
		answers := n.run(t, false, order,
			"dial tcp 203.0.113.1:"+testPort+" udp 203.0.113.1:"+testPort+" udp "+UserNetwork().Nameservers[0].String()+":53")
		for i, answer := range strings.Split(answers[0], "|") {
			if !strings.HasPrefix(answer, "error: ") {
				t.Errorf("%s reaches the %s", attacks[i], answer)
			}
		}
		if got := answers[1]; got != "neighbour|neighbour|nameserver" {
			t.Error("the way out leads to", got)
		}
	})
}

// A TAP works though QEMU is in another network namespace.
func TestTAP(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make a TAP device")
	}
	host := newNamespace(t)
	config := testConfig(t)
	config.Network = vmm.Network{Mode: vmm.NetworkTAP, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	inNamespace(t, host, func() error {
		tap, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		config.Network.TAP = tap
		request, err := unix.NewIfreq("tap")
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(int(tap.Fd()), unix.TUNSETIFF, request); err != nil {
			return err
		}
		return errors.Join(up("lo"), up("tap", "203.0.113.2/24"))
	})
	serve(t, host, "host", testPort)
	m, r := bootMachine(t, config)
	if err := config.Network.TAP.Close(); err != nil {
		t.Fatal(err)
	}
	if answer, err := r.do("net 203.0.113.3/24 203.0.113.2"); err != nil || answer != config.Network.MAC.String() {
		t.Fatal(answer, err)
	}
	if answer, err := r.do("dial tcp 203.0.113.2:" + testPort); err != nil || answer != "host" {
		t.Error(answer, err)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	inNamespace(t, host, func() error {
		var missing netlink.LinkNotFoundError
		if _, err := netlink.LinkByName("tap"); !errors.As(err, &missing) {
			t.Error("the TAP outlives QEMU:", err)
		}
		return nil
	})
}

func TestRoutes(t *testing.T) {
	got := routes([]netip.Prefix{
		netip.MustParsePrefix("203.0.113.9/24"), netip.MustParsePrefix("2001:db8::1/128"),
		netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("203.0.113.9/24"),
	})
	want := "link set dev lo up\nroute add unreachable 169.254.0.0/16\nroute add unreachable 203.0.113.0/24\n"
	if got != want {
		t.Errorf("got %q", got)
	}
}

// Whatever keeps the way out from being made, it is an error that says why, and
// nothing is left.
func TestEgressRefused(t *testing.T) {
	before := openFiles(t)
	d := NewDriver(Options{Block: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}, Log: testLog(t)})
	if err := d.Egress(t.Context()); err != nil {
		t.Skip("no user-mode network on this host:", err)
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := d.Egress(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Run("no slirp4netns", func(t *testing.T) {
		t.Setenv("PATH", "/nowhere")
		var missing *NotInstalledError
		if err := d.Egress(t.Context()); !errors.As(err, &missing) || missing.Package != "slirp4netns" {
			t.Error(err)
		}
	})
	t.Run("slirp4netns fails", func(t *testing.T) {
		bin := t.TempDir()
		script := "#!/bin/sh\necho it is broken >&2\nexit 1\n"
		if err := os.WriteFile(filepath.Join(bin, "slirp4netns"), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
		if err := d.Egress(t.Context()); err == nil || !strings.Contains(err.Error(), "it is broken") {
			t.Error(err)
		}
	})
	if after := openFiles(t); after != before {
		t.Errorf("%d files were open before, %d are after", before, after)
	}
	if children := childrenOf(t, os.Getpid()); len(children) > 0 {
		t.Error("children are left:", children)
	}
}
