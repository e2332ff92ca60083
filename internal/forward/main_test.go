package forward_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/guestlink/linktest"
	"github.com/smolvm/smolvm/internal/network"
	"github.com/smolvm/smolvm/internal/network/nettest"
)

// patience is how long something that works may take, on a busy machine.
const patience = 10 * time.Second

// holdVariable makes the test program another one, which holds the port it names.
const holdVariable = "SMOLVM_FORWARD_TEST_HOLD"

func TestMain(m *testing.M) {
	linktest.Main()
	if address := os.Getenv(holdVariable); address != "" {
		hold(address)
	}
	if description := os.Getenv(racerVariable); description != "" {
		race(description)
	}
	nettest.Main(func() int {
		code := m.Run()
		if err := goleak.Find(); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	})
}

// hold greets on an address until its input ends.
func hold(address string) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go serveName(l, "stranger")
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// stranger is another process that holds a port until the test ends. It returns its PID.
func stranger(t *testing.T, address string) int {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), holdVariable+"="+address)
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		stdin.Close()
		must(t, cmd.Wait())
	})
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Fatal("stranger does not listen:", err)
	}
	return cmd.Process.Pid
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// machine is a guest, with a manager for its forwards.
type machine struct {
	*nettest.Namespace
	*forward.Manager
	t       testing.TB
	host    *network.Host
	ifc     *network.Interface
	log     *nettest.Log
	tunnels counter
	servers []net.Listener
}

// config is the Config of a machine that can do everything.
func (m *machine) config() forward.Config {
	return forward.Config{
		VM: "test", Table: m.host.Table(), Guest: m.ifc.GuestAddr, Tunnel: tunnel{m},
		Log: slog.New(slog.NewTextHandler(m.log, nil)),
	}
}

// tunnel is a way into the guest that begins within it.
type tunnel struct{ m *machine }

func (t tunnel) DialStream(ctx context.Context, port uint16) (forward.Conn, error) {
	c, err := t.dial(ctx, "tcp", port)
	if err != nil {
		return nil, err
	}
	// Not a *net.TCPConn, as a channel in SSH is none.
	return tunnelConn{c.(*net.TCPConn)}, nil
}

func (t tunnel) DialDatagrams(ctx context.Context, port uint16) (net.Conn, error) {
	return t.dial(ctx, "udp", port)
}

func (t tunnel) dial(ctx context.Context, network string, port uint16) (net.Conn, error) {
	t.m.tunnels.add(1)
	return t.m.Dial(ctx, network, net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
}

// tunnelConn can be reset, as a channel of ours can.
type tunnelConn struct{ forward.Conn }

func (c tunnelConn) SetLinger(seconds int) error { return c.Conn.(*net.TCPConn).SetLinger(seconds) }

// newMachine makes a guest whose own server greets like an SSH server. What change
// does to the Config is done before the manager is made.
func newMachine(t testing.TB, change ...func(*forward.Config)) *machine {
	t.Helper()
	host := network.NewHost(network.Options{RuntimeDir: t.TempDir()})
	t.Cleanup(func() { must(t, host.Close()) })
	ifc, err := host.Attach(t.Context(), network.Attachment{VM: "test"})
	must(t, err)
	t.Cleanup(func() { must(t, ifc.Close()) })
	m := &machine{t: t, host: host, ifc: ifc, log: &nettest.Log{}}
	m.Namespace = nettest.Guest(t, ifc, ifc.HostAddr, ifc.GuestMAC)
	go serveName(m.Listen("0.0.0.0:22"), "SSH-2.0-test")
	config := m.config()
	for _, c := range change {
		c(&config)
	}
	m.Manager = m.another(config)
	return m
}

// another makes one more manager, which is closed in the end.
func (m *machine) another(config forward.Config) *forward.Manager {
	manager := forward.NewManager(config)
	m.t.Cleanup(func() { must(m.t, manager.Close()) })
	return manager
}

// serve begins a server in the guest that says name.
func (m *machine) serve(address, name string) {
	l := m.Listen(address)
	m.servers = append(m.servers, l)
	go serveName(l, name)
}

// closeServers ends all that serve began.
func (m *machine) closeServers() {
	for _, l := range m.servers {
		l.Close()
	}
}

// forward is what the list says of a pair.
func (m *machine) forward(p forward.Pair) forward.Forward {
	m.t.Helper()
	for _, f := range m.Forwards() {
		if f.Pair == p {
			return f
		}
	}
	m.t.Fatalf("%+v is not listed", p)
	return forward.Forward{}
}

// othersPort is a port of another guest. Mappings to guests that are not there do not stay.
func (m *machine) othersPort() netip.AddrPort {
	m.t.Helper()
	ifc, err := m.host.Attach(m.t.Context(), network.Attachment{VM: "other"})
	must(m.t, err)
	m.t.Cleanup(func() { must(m.t, ifc.Close()) })
	return netip.AddrPortFrom(ifc.GuestAddr, 80)
}

// expose exposes what must be exposable.
func (m *machine) expose(r forward.Request) forward.Forward {
	m.t.Helper()
	f, err := m.Expose(m.t.Context(), r)
	must(m.t, err)
	return f
}

func (m *machine) unexpose(f forward.Forward) {
	m.t.Helper()
	must(m.t, unexpose(m.t.Context(), m.Manager, f))
}

func unexpose(ctx context.Context, m *forward.Manager, f forward.Forward) error {
	return m.Unexpose(ctx, f.Pair)
}

func serveName(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if errors.Is(err, unix.EMFILE) {
			continue // the test took the descriptors away, and gives them back
		}
		if err != nil {
			return
		}
		io.WriteString(c, name)
		c.Close()
	}
}

// ask connects and returns what is said.
func ask(host string, port int) (string, error) {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(port)), patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(c)
	return string(b), err
}

func wantAnswer(t *testing.T, host string, port int, want string) {
	t.Helper()
	if got, err := ask(host, port); err != nil || got != want {
		t.Errorf("%s port %d: %q, %v, want %q", host, port, got, err, want)
	}
}

// both are localhost's two addresses.
func both() []string { return []string{"127.0.0.1", "::1"} }

// footprint shows all that forwards may leave: rules, listeners, sockets of this
// process.
func footprint(t *testing.T) string {
	t.Helper()
	return run(t, "nft", "--stateless", "list", "ruleset") + run(t, "ss", "-Htuln") + fmt.Sprint(openFiles(t, "socket:"), " sockets open")
}

// wantFootprint checks that all is as it was. The servers of the tests may be a moment late
// to close their own ends.
func wantFootprint(t *testing.T, before string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		after := footprint(t)
		if after == before {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
			return
		}
	}
}

// settled is the footprint once it stays the same.
func settled(t *testing.T) string {
	t.Helper()
	last := footprint(t)
	for {
		now := footprint(t)
		if now == last {
			return now
		}
		last = now
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// mapped tells whether the kernel forwards a port.
func (m *machine) mapped(port int) bool {
	m.t.Helper()
	guest, err := m.host.Table().Lookup(m.t.Context(), forward.TCP, uint16(port))
	must(m.t, err)
	return guest.IsValid()
}

// wait waits for a condition.
func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for:", what)
		}
		time.Sleep(time.Millisecond)
	}
}

type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) add(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += n
	return c.n
}

var errBroken = errors.New("broken on purpose")
