package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/smolvm/smolvm"
	"github.com/smolvm/smolvm/internal/network/nettest"
	"github.com/smolvm/smolvm/internal/testworld"
)

// patience bounds every wait of the tests. Nothing should come near it.
const patience = 60 * time.Second

// eventually waits until check succeeds.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("in vain waited that %s: %v", what, err)
		}
	}
}

// dataDir is a data directory for one test. It is world-traversable, for tests
// that become somebody else.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(testworld.Scratch, "data-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// shareTemplates has a data directory use the templates of all tests, as the many VMs of one
// user share theirs.
func shareTemplates(dataDir string) error {
	const shared = testworld.Scratch + "/templates"
	cache := dataDir + "/cache"
	return errors.Join(os.MkdirAll(shared, 0o700), os.MkdirAll(cache, 0o700), os.Symlink(shared, cache+"/templates"))
}

// ownTemplates gives the fixture templates that no other test has.
func (f *fixture) ownTemplates() {
	f.t.Helper()
	if err := os.Remove(f.dir + "/cache/templates"); err != nil {
		f.t.Fatal(err)
	}
}

// fixture is what one test works with.
type fixture struct {
	t    *testing.T
	dir  string
	log  *nettest.Log
	opts []smolvm.Option
}

// newFixture makes a data directory and a log, and checks at the end of the test
// that nothing else is left.
func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: dataDir(t), log: new(nettest.Log)}
	f.opts = []smolvm.Option{
		smolvm.DataDir(f.dir),
		smolvm.Logger(slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))),
	}
	if err := shareTemplates(f.dir); err != nil {
		t.Fatal(err)
	}
	// The first use makes what stays for good: directories and locks.
	if vms, err := smolvm.List(t.Context(), f.opts...); err != nil || len(vms) != 0 {
		t.Fatalf("list of no VMs: %v, %v", vms, err)
	}
	before := hostState(t, f.dir+"/vms")
	t.Cleanup(func() {
		wantState(t, before, f.dir+"/vms")
		if t.Failed() {
			t.Log(f.log)
		}
	})
	return f
}

// launch starts a VM, which is closed at the end of the test.
func (f *fixture) launch(opts ...smolvm.Option) *smolvm.VM {
	f.t.Helper()
	vm, err := smolvm.Launch(f.t.Context(), append(f.opts[:len(f.opts):len(f.opts)], opts...)...)
	if err != nil {
		f.t.Fatalf("launch: %v\n%s", err, f.log)
	}
	f.closeAtEnd(vm)
	return vm
}

func (f *fixture) closeAtEnd(vm *smolvm.VM) {
	f.t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			f.t.Errorf("close %s: %v", vm.Name(), err)
		}
	})
}

// run runs a command in the guest that must succeed, and returns its output.
func run(t *testing.T, vm *smolvm.VM, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	res, err := vm.Run(ctx, command)
	if err != nil {
		t.Fatalf("run %q: %v", command, err)
	}
	if res.ExitCode != 0 {
		t.Fatalf("run %q: exit code %d\n%s%s", command, res.ExitCode, res.Stdout, res.Stderr)
	}
	return res.Stdout
}

// serve starts a web server in the guest whose page is text, and waits for it.
func serve(t *testing.T, vm *smolvm.VM, port int, text string) {
	t.Helper()
	serveOn(t, vm, "0.0.0.0", port, text)
}

func serveOn(t *testing.T, vm *smolvm.VM, address string, port int, text string) {
	t.Helper()
	run(t, vm, fmt.Sprintf("mkdir -p /srv/%[1]d && cd /srv/%[1]d && printf %%s '%[2]s' >index.html && python3 -m http.server --bind %[3]s %[1]d &",
		port, text, address))
	waitPort(t, vm, port)
}

func waitPort(t *testing.T, vm *smolvm.VM, port int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := vm.WaitPort(ctx, port); err != nil {
		t.Fatal(err)
	}
}

// expose exposes a port and wants the host port that is given, or any if it is 0.
func expose(t *testing.T, vm *smolvm.VM, guestPort, want int, opts ...smolvm.PortOption) int {
	t.Helper()
	got, err := vm.ExposeLocal(t.Context(), guestPort, opts...)
	if err != nil {
		t.Fatalf("expose %d: %v", guestPort, err)
	}
	if want != 0 && got != want {
		t.Fatalf("expose %d: got host port %d, want %d", guestPort, got, want)
	}
	return got
}

// get fetches a page over a connection of its own.
func get(host string, port int, path string) ([]byte, error) {
	client := http.Client{
		Timeout:   patience,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: patience}).DialContext},
	}
	resp, err := client.Get("http://" + net.JoinHostPort(host, strconv.Itoa(port)) + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return body, err
}

// wantPage fetches a page by both names of localhost and compares it.
func wantPage(t *testing.T, port int, want string) {
	t.Helper()
	for _, host := range []string{"127.0.0.1", "localhost", "::1"} {
		if got, err := get(host, port, "/"); err != nil || string(got) != want {
			t.Errorf("page through %s:%d: %q, %v; want %q", host, port, got, err, want)
		}
	}
}

// wantRefused wants connections to a port of localhost to be refused at once, and
// the port to be free to bind.
func wantRefused(t *testing.T, port int) {
	t.Helper()
	for _, host := range []string{"127.0.0.1", "::1"} {
		address := net.JoinHostPort(host, strconv.Itoa(port))
		if conn, err := net.DialTimeout("tcp", address, 5*time.Second); err == nil {
			conn.Close()
			t.Errorf("%s still answers", address)
		} else if !isRefused(err) {
			t.Errorf("dial %s: %v, want it refused", address, err)
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Errorf("port is not free: %v", err)
			continue
		}
		l.Close()
	}
	if !smolvm.PortAvailable(port) {
		t.Errorf("PortAvailable(%d) is false", port)
	}
}

// transportOf tells by what a host port is forwarded.
func transportOf(t *testing.T, vm *smolvm.VM, hostPort int) smolvm.TransportKind {
	t.Helper()
	for _, f := range vm.Forwards() {
		if f.HostPort == hostPort {
			return f.Transport
		}
	}
	t.Fatalf("port %d is not in the list of forwards %v", hostPort, vm.Forwards())
	return ""
}

// ownersOf lists the background owners that belong to this run of the tests.
func ownersOf(t *testing.T) []int {
	t.Helper()
	var pids []int
	for _, process := range monitors(t) {
		var pid int
		var name string
		if n, _ := fmt.Sscanf(process, "process %d %s", &pid, &name); n == 2 && name == "smolvm" {
			pids = append(pids, pid)
		}
	}
	// What an owner is about to start is called as it is for a moment.
	return slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { return slices.Contains(pids, parentOf(pid)) })
}

// parentOf is the process that a process is a child of, or 0.
func parentOf(pid int) int {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		var parent int
		if n, _ := fmt.Sscanf(line, "PPid: %d", &parent); n == 1 {
			return parent
		}
	}
	return 0
}

// wantLine reads lines until one is as wanted.
func wantLine(t *testing.T, from io.Reader, want string) {
	t.Helper()
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == want {
			return
		}
	}
	t.Errorf("in vain waited for the line %q: %v", want, lines.Err())
}

// containsElements tells whether a set or map, as nft lists it, has elements.
func containsElements(listing string) bool { return strings.Contains(listing, "elements") }
