package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/smolvm/smolvm"
)

func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// TestPage is the main job: a page made in the guest, fetched on the host.
func TestPage(t *testing.T) {
	f := newFixture(t)
	vm := f.launch(smolvm.Name("web"))
	const page = "<h1>Hello from the guest</h1>"
	serve(t, vm, 8000, page)
	port := expose(t, vm, 8000, 0)
	wantPage(t, port, page)
	if again := expose(t, vm, 8000, 0); again != port {
		t.Errorf("exposed again: port %d, want the same %d", again, port)
	}
	if got := run(t, vm, "hostname"); got != "web\n" {
		t.Errorf("host name in the guest: %q", got)
	}
}

// TestHostPorts gives host ports, and takes them back.
func TestHostPorts(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	serve(t, vm, 8000, "eight")
	serve(t, vm, 8080, "nine")
	expose(t, vm, 8000, 8000, smolvm.HostPort(8000))
	expose(t, vm, 8080, 3000, smolvm.HostPort(3000))
	other := expose(t, vm, 8000, 8001, smolvm.HostPort(8001))
	wantPage(t, 8000, "eight")
	wantPage(t, other, "eight")
	wantPage(t, 3000, "nine")
	if smolvm.PortAvailable(3000) {
		t.Error("an exposed port is said to be available")
	}
	for range 2 { // the second time there is nothing to do
		if err := vm.UnexposeLocal(t.Context(), 3000, 8080); err != nil {
			t.Fatal(err)
		}
	}
	wantRefused(t, 3000)
	wantPage(t, 8000, "eight")
	// A port that just served connections is there to be had again, by the same number.
	expose(t, vm, 8080, 3000, smolvm.HostPort(3000))
	wantPage(t, 3000, "nine")
	// No server: the port is exposed all the same, and refuses until there is one.
	port := expose(t, vm, 9000, 0)
	if _, err := get("127.0.0.1", port, "/"); err == nil {
		t.Error("a port with no server answered")
	}
	serve(t, vm, 9000, "late")
	wantPage(t, port, "late")
}

func TestWaitPortGivesUp(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := vm.WaitPort(ctx, 8000)
	if !errors.Is(err, smolvm.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WaitPort without a server: %v, want ErrTimeout", err)
	}
}

// TestBigFiles sends 64 MiB each way through each transport.
func TestBigFiles(t *testing.T) {
	f := newFixture(t)
	vm := f.launch(smolvm.CPUs(2))
	const size = 64 << 20
	// The server sends the file to a client that says "get", and hashes what one
	// that says "put" sends until its end of the stream.
	run(t, vm, `dd if=/dev/urandom of=/root/file bs=1M count=64 2>/dev/null && cat >/root/server.py <<'EOF'
import socket, hashlib, threading
s = socket.create_server(("0.0.0.0", 7000))
def serve(c):
    verb = c.recv(4)
    if verb == b"get\n":
        with open("/root/file", "rb") as f: c.sendfile(f)
    else:
        h, n = hashlib.sha256(), 0
        while b := c.recv(1 << 18): h.update(b); n += len(b)
        c.sendall(f"{n} {h.hexdigest()}".encode())
    c.close()
while True: threading.Thread(target=serve, args=(s.accept()[0],)).start()
EOF
python3 /root/server.py &`)
	waitPort(t, vm, 7000)
	want := strings.Fields(run(t, vm, "sha256sum /root/file"))[0]
	for _, transport := range []smolvm.TransportKind{smolvm.NFTables, smolvm.SSHTunnel} {
		t.Run(string(transport), func(t *testing.T) {
			port := expose(t, vm, 7000, 0, smolvm.HostPort(freePort(t)), smolvm.Transport(transport))
			conn := dial(t, port, "get\n")
			hash := sha256.New()
			if n, err := io.Copy(hash, conn); err != nil || n != size {
				t.Fatalf("download: %d bytes, %v", n, err)
			}
			if got := hex.EncodeToString(hash.Sum(nil)); got != want {
				t.Errorf("download is damaged: %s, want %s", got, want)
			}

			conn = dial(t, port, "put\n")
			hash.Reset()
			source := io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
			if _, err := io.Copy(conn, io.TeeReader(source, hash)); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(conn)
			if want := fmt.Sprintf("%d %x", size, hash.Sum(nil)); err != nil || string(answer) != want {
				t.Errorf("upload: the guest got %q, %v; want %q", answer, err, want)
			}
		})
	}
}

// dial connects to a port of localhost and says a first word.
func dial(t *testing.T, port int, word string) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, word); err != nil {
		t.Fatal(err)
	}
	return conn
}

// freePort returns a port that nothing in this namespace uses.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// TestConflicts lets two VMs and a stranger want the same ports.
func TestConflicts(t *testing.T) {
	f := newFixture(t)
	stranger, err := net.Listen("tcp", "127.0.0.1:9000")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	go func() {
		for {
			conn, err := stranger.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "stranger")
			conn.Close()
		}
	}()

	var vms [2]*smolvm.VM
	var wg sync.WaitGroup
	for i := range vms {
		wg.Go(func() { vms[i] = f.launch() })
	}
	wg.Wait()
	serve(t, vms[0], 8000, "first")
	serve(t, vms[1], 8000, "second")
	expose(t, vms[0], 8000, 8000, smolvm.HostPort(8000))
	second := expose(t, vms[1], 8000, 8001, smolvm.HostPort(8000))
	var warned bool
	for line := range strings.Lines(f.log.String()) {
		warned = warned || strings.Contains(line, "level=WARN") && strings.Contains(line, "wanted=8000 host_port=8001")
	}
	if !warned {
		t.Errorf("the log does not warn of the other port:\n%s", f.log)
	}
	wantPage(t, 8000, "first")
	wantPage(t, second, "second")

	third := expose(t, vms[0], 8000, 9001, smolvm.HostPort(9000))
	wantPage(t, third, "first")
	conn := dial(t, 9000, "")
	if got, err := io.ReadAll(conn); err != nil || string(got) != "stranger" {
		t.Errorf("the stranger is disturbed: %q, %v", got, err)
	}
	_, err = vms[1].ExposeLocal(t.Context(), 8000, smolvm.HostPort(9000), smolvm.Strict())
	var inUse *smolvm.PortInUseError
	if !errors.Is(err, smolvm.ErrPortInUse) || !errors.As(err, &inUse) || inUse.Port != 9000 {
		t.Errorf("strict: %v, want ErrPortInUse of 9000", err)
	} else if !strings.HasSuffix(inUse.Holder, fmt.Sprintf(", pid %d", os.Getpid())) {
		t.Errorf("strict: the holder is %q, want this test", inUse.Holder)
	}
}

// TestGuestLoopback reaches a server that only listens on the guest's own
// 127.0.0.1, whichever came first: the server or the expose.
func TestGuestLoopback(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	serveOn(t, vm, "127.0.0.1", 5000, "private")
	port := expose(t, vm, 5000, 0)
	wantPage(t, port, "private")
	if got := transportOf(t, vm, port); got != smolvm.SSHTunnel {
		t.Errorf("transport is %s", got)
	}

	late := expose(t, vm, 5001, 0)
	serveOn(t, vm, "127.0.0.1", 5001, "late")
	eventually(t, "the forward follows the server", func() error {
		got, err := get("127.0.0.1", late, "/")
		if err == nil && string(got) != "late" {
			err = fmt.Errorf("page is %q", got)
		}
		return err
	})
	if got := transportOf(t, vm, late); got != smolvm.SSHTunnel {
		t.Errorf("transport is %s", got)
	}
}

// TestCluster starts three VMs at once, with a server in each.
func TestCluster(t *testing.T) {
	f := newFixture(t)
	ports := make([]int, 3)
	var wg sync.WaitGroup
	for i := range ports {
		wg.Go(func() {
			vm := f.launch(smolvm.Name(fmt.Sprintf("node-%d", i)))
			serve(t, vm, 8000, fmt.Sprintf("page %d", i))
			ports[i] = expose(t, vm, 8000, 0)
		})
	}
	wg.Wait()
	for i, port := range ports {
		wantPage(t, port, fmt.Sprintf("page %d", i))
	}
}
