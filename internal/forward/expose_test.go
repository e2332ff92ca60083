package forward_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/guestapi"
)

func TestTransports(t *testing.T) {
	for _, asked := range []forward.Transport{"", forward.NFTables, forward.SSHTunnel} {
		t.Run("asked "+string(asked), func(t *testing.T) {
			m := newMachine(t)
			m.serve("0.0.0.0:80", "page")
			before := settled(t)
			want := forward.NFTables
			if asked != "" {
				want = asked
			}
			f := m.expose(forward.Request{GuestPort: 80, Transport: asked})
			if f.Transport != want || f.GuestPort != 80 || f.Protocol != forward.TCP {
				t.Errorf("got %+v", f)
			}
			if m.log.Count("msg=exposed vm=test transport="+string(want)+" host_port="+strconv.Itoa(f.HostPort)+" guest_port=80") != 1 {
				t.Error("not logged:", m.log)
			}
			if m.mapped(f.HostPort) != (want == forward.NFTables) {
				t.Error("element in the table:", m.mapped(f.HostPort))
			}
			for _, host := range both() {
				wantAnswer(t, host, f.HostPort, "page")
			}
			m.unexpose(f)
			for _, host := range both() {
				if _, err := ask(host, f.HostPort); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("%s after unexpose: %v", host, err)
				}
			}
			if !forward.PortAvailable(f.HostPort) {
				t.Error("the port is not free")
			}
			wantFootprint(t, before)
			m.unexpose(f) // idempotent
			if again := m.expose(forward.Request{GuestPort: 80, HostPort: f.HostPort, Strict: true, Transport: asked}); again.HostPort != f.HostPort {
				t.Errorf("exposed again on %d, not %d", again.HostPort, f.HostPort)
			}
		})
	}
}

func TestInvalidRequests(t *testing.T) {
	m := newMachine(t)
	must(t, m.Prove(t.Context()))
	before := settled(t)
	for _, test := range []struct {
		req  forward.Request
		want string
	}{
		{forward.Request{GuestPort: 0}, "guest_port must be 1-65535"},
		{forward.Request{GuestPort: -1}, "guest_port must be 1-65535"},
		{forward.Request{GuestPort: 65536}, "guest_port must be 1-65535"},
		{forward.Request{GuestPort: 80, HostPortSet: true}, "host_port must be 1-65535"},
		{forward.Request{GuestPort: 80, HostPort: -1}, "host_port must be 1-65535"},
		{forward.Request{GuestPort: 80, HostPort: 99999, HostPortSet: true}, "host_port must be 1-65535"},
	} {
		_, err := m.Expose(t.Context(), test.req)
		if err == nil || err.Error() != test.want || !errors.Is(err, forward.ErrInvalidPort) {
			t.Errorf("%+v: %v", test.req, err)
		}
	}
	if _, err := m.Expose(t.Context(), forward.Request{GuestPort: 80, Transport: "pigeon"}); !errors.Is(err, forward.ErrTransport) {
		t.Error("pigeon:", err)
	}
	if err := m.Unexpose(t.Context(), forward.Pair{GuestPort: 80}); !errors.Is(err, forward.ErrInvalidPort) {
		t.Error("unexpose:", err)
	}
	wantFootprint(t, before)
	if forward.PortAvailable(0) || forward.PortAvailable(65536) {
		t.Error("impossible ports are available")
	}
}

// same tells whether two descriptions are of one forward that goes one way.
func same(a, b forward.Forward) bool {
	return a.Pair == b.Pair && a.Transport == b.Transport && a.Reason == b.Reason
}

func TestExposeIsIdempotent(t *testing.T) {
	m := newMachine(t)
	f := m.expose(forward.Request{GuestPort: 80})
	for _, req := range []forward.Request{
		{GuestPort: 80}, {GuestPort: 80, HostPort: f.HostPort}, {GuestPort: 80, HostPort: f.HostPort, Strict: true, Transport: forward.NFTables},
	} {
		if again := m.expose(req); !same(again, f) {
			t.Errorf("%+v gave %+v, not %+v", req, again, f)
		}
	}
	if _, err := m.Expose(t.Context(), forward.Request{GuestPort: 80, Transport: forward.SSHTunnel}); !errors.Is(err, forward.ErrTransport) {
		t.Error("another transport for the same forward:", err)
	}
	// The same host port for another guest port is a conflict like any other.
	if _, err := m.Expose(t.Context(), forward.Request{GuestPort: 81, HostPort: f.HostPort, Strict: true}); !errors.Is(err, forward.ErrPortInUse) {
		t.Error(err)
	}
	if err := m.Unexpose(t.Context(), forward.Pair{HostPort: f.HostPort, GuestPort: 81}); err != nil {
		t.Error(err)
	}
	if got := m.Forwards(); len(got) != 1 || !same(got[0], f) {
		t.Errorf("forwards are %+v", got)
	}
}

// freePort returns a port that nothing has, with the next one free too.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		must(t, err)
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		if port < 65535 && forward.PortAvailable(port) && forward.PortAvailable(port+1) {
			return port
		}
	}
	t.Fatal("no two ports in a row are free")
	return 0
}

func TestBusyPortsAreSteppedAround(t *testing.T) {
	m := newMachine(t)
	m.serve("0.0.0.0:80", "page")
	for _, host := range []string{"127.0.0.1", "0.0.0.0", "::", "::1"} {
		t.Run(host, func(t *testing.T) {
			port := freePort(t)
			pid := stranger(t, net.JoinHostPort(host, strconv.Itoa(port)))
			if forward.PortAvailable(port) {
				t.Error("the port counts as available")
			}
			_, err := m.Expose(t.Context(), forward.Request{GuestPort: 80, HostPort: port, Strict: true})
			var inUse *forward.PortInUseError
			if !errors.As(err, &inUse) || !errors.Is(err, forward.ErrPortInUse) || inUse.Port != port ||
				!strings.HasSuffix(inUse.Holder, fmt.Sprintf(", pid %d", pid)) {
				t.Errorf("strict: %v", err)
			}
			f := m.expose(forward.Request{GuestPort: 80, HostPort: port})
			defer m.unexpose(f)
			if f.HostPort != port+1 {
				t.Errorf("got port %d instead of %d", f.HostPort, port)
			}
			if m.log.Count(fmt.Sprintf("wanted=%d host_port=%d", port, f.HostPort)) != 1 {
				t.Error("not told:", m.log)
			}
			wantAnswer(t, "127.0.0.1", f.HostPort, "page")
			if host == "0.0.0.0" || host == "::" {
				host = "127.0.0.1"
			}
			wantAnswer(t, host, port, "stranger")
		})
	}
}

func TestBoundPortIsBusy(t *testing.T) {
	m := newMachine(t)
	for _, reuse := range []int{0, 1} {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, reuse))
		must(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
		addr, err := unix.Getsockname(fd)
		must(t, err)
		port := addr.(*unix.SockaddrInet4).Port
		if _, err := m.Expose(t.Context(), forward.Request{GuestPort: 80, HostPort: port, Strict: true}); !errors.Is(err, forward.ErrPortInUse) {
			t.Errorf("bound, reuse %d: %v", reuse, err)
		}
	}
}

func TestAnotherOwnersElementIsBusy(t *testing.T) {
	for _, asked := range []forward.Transport{"", forward.SSHTunnel} {
		m := newMachine(t)
		port := freePort(t)
		// What an owner that was killed leaves while its VM lives.
		left := forward.Mapping{Protocol: forward.TCP, HostPort: uint16(port), Guest: m.othersPort()}
		must(t, m.host.Table().Add(t.Context(), left))
		if _, err := m.Expose(t.Context(), forward.Request{GuestPort: 80, HostPort: port, Strict: true, Transport: asked}); !errors.Is(err, forward.ErrPortInUse) {
			t.Error("strict:", err)
		}
		if f := m.expose(forward.Request{GuestPort: 80, HostPort: port, Transport: asked}); f.HostPort == port {
			t.Error("the port was hijacked")
		}
		if got, err := m.host.Table().Lookup(t.Context(), forward.TCP, uint16(port)); err != nil || got != left.Guest {
			t.Errorf("the other's element is now %v, %v", got, err)
		}
	}
}

func TestTwoManagersOnePort(t *testing.T) {
	a, b := newMachine(t), newMachine(t)
	a.serve("0.0.0.0:80", "a")
	b.serve("0.0.0.0:80", "b")
	port := freePort(t)
	var wg sync.WaitGroup
	var fa, fb forward.Forward
	var errA, errB error
	wg.Go(func() { fa, errA = a.Expose(t.Context(), forward.Request{GuestPort: 80, HostPort: port}) })
	wg.Go(func() { fb, errB = b.Expose(t.Context(), forward.Request{GuestPort: 80, HostPort: port}) })
	wg.Wait()
	must(t, errors.Join(errA, errB))
	if fa.HostPort == fb.HostPort || (fa.HostPort != port && fb.HostPort != port) {
		t.Fatalf("a got %d, b got %d, both wanted %d", fa.HostPort, fb.HostPort, port)
	}
	for _, host := range both() {
		wantAnswer(t, host, fa.HostPort, "a")
		wantAnswer(t, host, fb.HostPort, "b")
	}
}

func TestExposeRace(t *testing.T) {
	m := newMachine(t)
	m.serve("0.0.0.0:80", "page")
	must(t, m.Prove(t.Context()))
	before := settled(t)
	var wg sync.WaitGroup
	for g := range 64 {
		wg.Go(func() {
			for i := range 2 {
				asked := []forward.Transport{"", forward.SSHTunnel}[(g+i)%2]
				f, err := m.Expose(t.Context(), forward.Request{GuestPort: 1000 + g, Transport: asked})
				if err != nil {
					t.Error(err)
					return
				}
				m.Forwards()
				if err := m.Unexpose(t.Context(), f.Pair); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := m.Forwards(); len(got) != 0 {
		t.Errorf("left: %+v", got)
	}
	wantFootprint(t, before)
}

func TestSetListeners(t *testing.T) {
	m := newMachine(t)
	m.serve("127.0.0.1:80", "inside")
	f := m.expose(forward.Request{GuestPort: 80})
	if f.Transport != forward.NFTables {
		t.Fatalf("got %+v", f)
	}
	// Forwarded by the kernel, a service on the guest's loopback does not answer.
	if _, err := ask("127.0.0.1", f.HostPort); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("without report: %v", err)
	}
	// What goes through the listener finds it by itself.
	wantAnswer(t, "::1", f.HostPort, "inside")
	inside := map[uint16]guestapi.Scope{80: guestapi.ScopeLoopback}
	m.SetListeners(listeners(inside))
	if got := m.Forwards()[0]; got.Transport != forward.SSHTunnel || !strings.Contains(got.Reason, "loopback only") {
		t.Errorf("got %+v", got)
	}
	for _, host := range both() {
		wantAnswer(t, host, f.HostPort, "inside")
	}
	m.SetListeners(listeners(map[uint16]guestapi.Scope{})) // it restarts
	m.SetListeners(listeners(nil))
	if got := m.Forwards()[0].Transport; got != forward.SSHTunnel {
		t.Errorf("moved to %s while nothing listens", got)
	}
	m.serve(m.ifc.GuestAddr.String()+":80", "outside")
	m.SetListeners(listeners(map[uint16]guestapi.Scope{80: guestapi.ScopeNetwork}))
	if got := m.Forwards()[0]; got.Transport != forward.NFTables || got.Reason != "" {
		t.Errorf("got %+v", got)
	}
	wantAnswer(t, "127.0.0.1", f.HostPort, "outside")
	if got := m.log.Count("msg=\"transport changed\""); got != 2 {
		t.Errorf("%d changes logged: %s", got, m.log)
	}

	// The report first, then the forward.
	m.SetListeners(listeners(map[uint16]guestapi.Scope{81: guestapi.ScopeLoopback}))
	if g := m.expose(forward.Request{GuestPort: 81}); g.Transport != forward.SSHTunnel {
		t.Errorf("got %+v", g)
	}
	if _, err := m.Expose(t.Context(), forward.Request{GuestPort: 81, HostPort: freePort(t), Transport: forward.NFTables}); !errors.Is(err, forward.ErrTransport) {
		t.Errorf("the kernel cannot reach it, and: %v", err)
	}
}

func TestMovingLeavesNoGap(t *testing.T) {
	m := newMachine(t)
	m.serve("0.0.0.0:80", "page")
	f := m.expose(forward.Request{GuestPort: 80})
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if got, err := ask("127.0.0.1", f.HostPort); err != nil || got != "page" {
				t.Errorf("%q, %v", got, err)
				return
			}
		}
	}()
	for range 50 {
		m.SetListeners(listeners(map[uint16]guestapi.Scope{80: guestapi.ScopeLoopback}))
		m.SetListeners(listeners(map[uint16]guestapi.Scope{80: guestapi.ScopeNetwork}))
	}
	close(stop)
	<-done
}

func TestFlushedFirewall(t *testing.T) {
	m := newMachine(t)
	m.serve("0.0.0.0:80", "page")
	f := m.expose(forward.Request{GuestPort: 80})
	wantAnswer(t, "127.0.0.1", f.HostPort, "page")
	run(t, "nft", "flush", "ruleset")
	for _, host := range both() {
		wantAnswer(t, host, f.HostPort, "page")
	}
	if m.tunnels.add(0) != 0 {
		t.Error("it took the tunnel though the guest's address can be reached")
	}
	m.unexpose(f)
	if _, err := ask("127.0.0.1", f.HostPort); !errors.Is(err, unix.ECONNREFUSED) {
		t.Error("after unexpose:", err)
	}
	g := m.expose(forward.Request{GuestPort: 80})
	if g.Transport != forward.NFTables || !m.mapped(g.HostPort) {
		t.Errorf("the next forward is %+v", g)
	}
}

func TestWithoutIPv6(t *testing.T) {
	m := newMachine(t)
	m.serve("0.0.0.0:80", "page")
	const setting = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"
	if _, err := os.Stat(setting); err == nil {
		must(t, os.WriteFile(setting, []byte("1"), 0))
		t.Cleanup(func() { must(t, os.WriteFile(setting, []byte("0"), 0)) })
	}
	f := m.expose(forward.Request{GuestPort: 80})
	wantAnswer(t, "127.0.0.1", f.HostPort, "page")
	g := m.expose(forward.Request{GuestPort: 81, HostPort: freePort(t), Strict: true, Transport: forward.SSHTunnel})
	m.unexpose(g)
}

func TestPrivilegedPort(t *testing.T) {
	m := newMachine(t)
	must(t, m.Prove(t.Context()))
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread loses a capability and is thrown away
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData
		if err := unix.Capget(&header, &sets[0]); err != nil {
			result <- err
			return
		}
		sets[0].Effective &^= 1 << unix.CAP_NET_BIND_SERVICE
		if err := unix.Capset(&header, &sets[0]); err != nil {
			result <- err
			return
		}
		_, err := m.Expose(context.Background(), forward.Request{GuestPort: 80, HostPort: 80})
		result <- err
	}()
	if err := <-result; !errors.Is(err, fs.ErrPermission) || errors.Is(err, forward.ErrPortInUse) || !strings.Contains(err.Error(), "port 80") {
		t.Errorf("got %v", err)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	m := newMachine(t)
	before := settled(t)
	m.expose(forward.Request{GuestPort: 80})
	m.expose(forward.Request{GuestPort: 81, Transport: forward.SSHTunnel})
	for range 2 {
		must(t, m.Close())
	}
	wantFootprint(t, before)
	if _, err := m.Expose(t.Context(), forward.Request{GuestPort: 80}); !errors.Is(err, forward.ErrClosed) {
		t.Error("after close:", err)
	}
	m.SetListeners(listeners(nil))
}

// listeners is a guest's report of its TCP listeners.
func listeners(tcp map[uint16]guestapi.Scope) guestapi.Listeners { return guestapi.Listeners{TCP: tcp} }
