package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm"
)

// serveDatagrams starts a server in the guest that answers every datagram with what it
// holds and its own word.
func serveDatagrams(t *testing.T, vm *smolvm.VM, address string, port int, word string) {
	t.Helper()
	run(t, vm, fmt.Sprintf(`cat >/root/udp.py <<'EOF'
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], int(sys.argv[2])))
while True:
    data, who = s.recvfrom(65536)
    s.sendto(data + b" " + sys.argv[3].encode(), who)
EOF
python3 /root/udp.py %s %d %s &`, address, port, word))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := vm.WaitPort(ctx, port, smolvm.Over(smolvm.UDP)); err != nil {
		t.Fatal(err)
	}
}

// ask sends one datagram and returns the answer.
func ask(host string, port int, word string) (string, error) {
	conn, err := net.Dial("udp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return converse(conn, word)
}

// converse sends a datagram and returns the next one that comes.
func converse(conn net.Conn, word string) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte(word)); err != nil {
		return "", err
	}
	answer := make([]byte, 1<<16)
	n, err := conn.Read(answer)
	return string(answer[:n]), err
}

// TestDatagrams forwards UDP by each transport, beside TCP on the same port.
func TestDatagrams(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	serveDatagrams(t, vm, "0.0.0.0", 53, "pong")
	serve(t, vm, 53, "page")
	udp := smolvm.Over(smolvm.UDP)
	for _, transport := range []smolvm.TransportKind{smolvm.NFTables, smolvm.SSHTunnel} {
		t.Run(string(transport), func(t *testing.T) {
			port := freePort(t)
			opts := []smolvm.PortOption{smolvm.HostPort(port), smolvm.Strict(), smolvm.Transport(transport)}
			expose(t, vm, 53, port, opts...)
			expose(t, vm, 53, port, append(opts, udp)...)
			for _, host := range []string{"127.0.0.1", "::1"} {
				if got, err := ask(host, port, "ping"); err != nil || got != "ping pong" {
					t.Errorf("through %s: %q, %v", host, got, err)
				}
			}
			wantPage(t, port, "page")
			conn, err := net.Dial("udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got, err := converse(conn, "one"); err != nil || got != "one pong" {
				t.Errorf("a conversation: %q, %v", got, err)
			}
			if err := vm.UnexposeLocal(t.Context(), port, 53, udp); err != nil {
				t.Fatal(err)
			}
			if got, err := converse(conn, "two"); err == nil {
				t.Errorf("a conversation went on after unexpose: %q", got)
			}
			wantPage(t, port, "page") // TCP is another forward
			if err := vm.UnexposeLocal(t.Context(), port, 53); err != nil {
				t.Fatal(err)
			}
			wantRefused(t, port)
		})
	}
	serveDatagrams(t, vm, "127.0.0.1", 54, "private")
	port := expose(t, vm, 54, 0, udp)
	if got, err := ask("127.0.0.1", port, "ping"); err != nil || got != "ping private" || transportOf(t, vm, port) != smolvm.SSHTunnel {
		t.Errorf("a server on the guest's loopback: %q, %v by %s", got, err, transportOf(t, vm, port))
	}
}

// TestPortSpecs exposes many ports in one call, from the library and the command.
func TestPortSpecs(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	serve(t, vm, 9002, "two")
	spec, err := smolvm.ParsePortSpec("127.0.0.1:8000-8004:9000-9004")
	if err != nil {
		t.Fatal(err)
	}
	forwards, err := vm.ExposeAll(t.Context(), []smolvm.PortSpec{spec}, smolvm.Strict())
	if err != nil || len(forwards) != 5 {
		t.Fatalf("expose a range: %v, %v", forwards, err)
	}
	wantPage(t, 8002, "two")
	before := hostState(t, f.dir+"/vms")
	spec.GuestPort = 7000 // the host's ports are taken now
	if _, err := vm.ExposeAll(t.Context(), []smolvm.PortSpec{{GuestPort: 6000}, spec}, smolvm.Strict()); !errors.Is(err, smolvm.ErrPortInUse) {
		t.Errorf("expose what is taken: %v", err)
	}
	wantState(t, before, f.dir+"/vms")
	if err := vm.UnexposeAll(t.Context(), forwards); err != nil {
		t.Fatal(err)
	}
	for _, f := range forwards {
		wantRefused(t, f.HostPort)
	}

	_, stderr, code := f.runToEnd(f.smolvmCmd("run", "-p", "8000-8002:9000-9002", "-p", "localhost:5353:53/udp", "-p", "70", "--", "true"))
	for _, want := range []string{
		"127.0.0.1:8000 -> 9000  transport=nftables", "127.0.0.1:8002 -> 9002  ", "127.0.0.1:5353 -> 53/udp  transport=nftables", "-> 70  ",
	} {
		if code != 0 || !strings.Contains(stderr, want) {
			t.Errorf("run: exit code %d, %q lacks %q", code, stderr, want)
		}
	}
	if _, stderr, code := f.runToEnd(f.smolvmCmd("run", "-p", "0.0.0.0:8000:80", "--", "true")); code != 125 || !strings.Contains(stderr, "reverse proxy") {
		t.Errorf("an address of the network: exit code %d, %q", code, stderr)
	}
}

// TestPause keeps what is exposed, and whoever connects waits.
func TestPause(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	serve(t, vm, 8000, "page")
	port := expose(t, vm, 8000, 0)
	tunnel := expose(t, vm, 8000, 0, smolvm.HostPort(freePort(t)), smolvm.Transport(smolvm.SSHTunnel))
	wantPage(t, port, "page")
	for range 2 {
		if err := vm.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wantStatus(t, vm, smolvm.StatusPaused)
	for _, fw := range vm.Forwards() {
		if fw.Health != smolvm.Down || !strings.Contains(fw.Reason, "paused") {
			t.Errorf("paused: %+v", fw)
		}
	}
	if _, err := vm.Run(t.Context(), "true"); !errors.Is(err, smolvm.ErrNotRunning) || !strings.Contains(err.Error(), "VM is paused") {
		t.Errorf("run while paused: %v", err)
	}
	pages := make(chan error, 2)
	for _, port := range []int{port, tunnel} {
		go func() {
			got, err := get("127.0.0.1", port, "/")
			if err == nil && string(got) != "page" {
				err = fmt.Errorf("got %q", got)
			}
			pages <- err
		}()
	}
	select {
	case err := <-pages:
		t.Errorf("a paused guest answered, or was given up: %v", err)
	case <-time.After(time.Second): // longer than an answer takes
	}
	for range 2 {
		if err := vm.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wantStatus(t, vm, smolvm.StatusRunning)
	for range 2 {
		if err := <-pages; err != nil {
			t.Errorf("who waited got %v", err)
		}
	}
	wantPage(t, port, "page")
	if got := vm.Forwards()[0]; got.Health != smolvm.Active {
		t.Errorf("resumed: %+v", got)
	}
	// A paused VM stops as any other.
	if err := errors.Join(vm.Pause(t.Context()), vm.Stop(t.Context())); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, vm, smolvm.StatusStopped)
	if err := vm.Resume(t.Context()); !errors.Is(err, smolvm.ErrNotRunning) {
		t.Errorf("resume of a stopped VM: %v", err)
	}
}

// TestPortsAgain stops a VM and starts it: ports that were asked for come back whenever
// they can, others if they are free.
func TestPortsAgain(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	wanted, automatic := freePort(t), expose(t, vm, 8000, 0)
	expose(t, vm, 8001, wanted, smolvm.HostPort(wanted))
	datagrams := expose(t, vm, 53, 0, smolvm.Over(smolvm.UDP))
	start := func() map[int]int {
		t.Helper()
		if err := vm.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		ports := map[int]int{}
		for _, fw := range vm.Forwards() {
			ports[fw.GuestPort] = fw.HostPort
		}
		return ports
	}
	stop := func() {
		t.Helper()
		if err := vm.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := vm.Forwards(); len(got) != 0 {
			t.Errorf("stopped: %v", got)
		}
	}
	stop()
	wantRefused(t, wanted)
	if got := start(); len(got) != 3 || got[8000] != automatic || got[8001] != wanted || got[53] != datagrams {
		t.Errorf("started again: %v", got)
	}
	serve(t, vm, 8001, "again")
	wantPage(t, wanted, "again")
	// While strangers have both, others are taken.
	stop()
	var strangers []net.Listener
	for _, port := range []int{automatic, wanted} {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		strangers = append(strangers, l)
	}
	moved := start()
	if len(moved) != 3 || moved[8000] == automatic || moved[8001] == wanted || moved[53] != datagrams {
		t.Errorf("started with strangers on the ports: %v", moved)
	}
	stop()
	for _, l := range strangers {
		l.Close()
	}
	if got := start(); got[8001] != wanted || got[8000] != moved[8000] {
		t.Errorf("started once they are gone: %v, want the port that was asked for, and %d", got, moved[8000])
	}
	if err := vm.UnexposeLocal(t.Context(), wanted, 8001); err != nil {
		t.Fatal(err)
	}
	stop()
	if got := start(); len(got) != 2 {
		t.Errorf("what was unexposed came back: %v", got)
	}
}

// TestForwardEvents follows a server that starts, moves and ends.
func TestForwardEvents(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	port := expose(t, vm, 8000, 0)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	events, err := vm.ForwardEvents(ctx)
	if err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		event string
		then  func()
	}{
		{"exposed %d nftables waiting", func() { run(t, vm, "python3 -m http.server --bind 0.0.0.0 8000 & echo $! >/root/pid") }},
		{"changed %d nftables active", func() { run(t, vm, "kill $(cat /root/pid)") }},
		{"changed %d nftables waiting", func() { run(t, vm, "python3 -m http.server --bind 127.0.0.1 8000 &") }},
		{"changed %d ssh_tunnel active", func() {
			if err := vm.UnexposeLocal(ctx, port, 8000); err != nil {
				t.Error(err)
			}
		}},
		{"unexposed %d ssh_tunnel active", func() {
			if err := vm.Stop(ctx); err != nil { // ends the events
				t.Error(err)
			}
		}},
	}
	for e := range events {
		if len(steps) == 0 {
			t.Errorf("one more event: %+v", e)
			continue
		}
		got := fmt.Sprintf("%s %d %s %s", e.Kind, e.Forward.HostPort, e.Forward.Transport, e.Forward.Health)
		if want := fmt.Sprintf(steps[0].event, port); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		steps[0].then()
		steps = steps[1:]
	}
	if len(steps) != 0 {
		t.Errorf("%d events are missing, %v", len(steps), ctx.Err())
	}
	if _, err := vm.ForwardEvents(ctx); !errors.Is(err, smolvm.ErrNotRunning) {
		t.Errorf("events of a stopped VM: %v", err)
	}
}

// TestHostFirewall has a firewall in the way, which is named and got around, and then
// not.
func TestHostFirewall(t *testing.T) {
	f := newFixture(t)
	nft(t, `table inet corporate {
		chain out { type filter hook output priority 0; policy drop; ip6 daddr ::1 accept; ip daddr { 127.0.0.0/8, 203.0.113.0/24 } accept; }
	}`)
	remove := sync.OnceFunc(func() { nft(t, "delete table inet corporate") })
	defer remove()
	vm := f.launch()
	serve(t, vm, 8000, "page")
	port := expose(t, vm, 8000, 0)
	wantPage(t, port, "page")
	fw := vm.Forwards()[0]
	if fw.Transport != smolvm.SSHTunnel || !strings.Contains(fw.Reason, "corporate") {
		t.Errorf("behind a firewall: %+v", fw)
	}
	if !strings.Contains(f.log.String(), "corporate") {
		t.Error("the log does not name the table")
	}
	checks, err := smolvm.Diagnose(t.Context(), f.opts...)
	if err != nil {
		t.Fatal(err)
	}
	named := false
	for _, check := range checks {
		named = named || check.Verdict == smolvm.Warning && strings.Contains(check.Detail, "corporate")
	}
	if !named {
		t.Error("the diagnosis does not name the table")
	}
	remove()
	eventually(t, "the kernel forwards", func() error {
		if got := transportOf(t, vm, port); got != smolvm.NFTables {
			return fmt.Errorf("transport is %s", got)
		}
		return nil
	})
	wantPage(t, port, "page")
}

// TestFlush flushes the host's packet filter again and again: nobody who uses a port
// notices, and guards and forwards are back soon.
func TestFlush(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	serve(t, vm, 8000, "page")
	port := expose(t, vm, 8000, 0)
	wantPage(t, port, "page")
	before := hostState(t, f.dir+"/vms")
	for _, rules := range []string{"flush ruleset", "delete table ip smolvm", "flush chain ip smolvm input"} {
		nft(t, rules)
		wantPage(t, port, "page")
		wantState(t, before, f.dir+"/vms")
		if got := transportOf(t, vm, port); got != smolvm.NFTables {
			t.Errorf("after %s: transport is %s", rules, got)
		}
	}
}

// TestLostChannel breaks the guest channel again and again: commands and tunnels work
// again without anybody's doing, and servers that begin later are still noticed.
func TestLostChannel(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	serve(t, vm, 8000, "page")
	port := expose(t, vm, 8000, 0, smolvm.Transport(smolvm.SSHTunnel))
	wantPage(t, port, "page")
	for i := range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		running := vm.Command(ctx, "sleep", "1000")
		if err := running.Start(); err != nil {
			t.Fatal(err)
		}
		if n := breakChannels(t); n == 0 {
			t.Fatal("there was no channel to break")
		}
		if err := running.Wait(); err == nil || ctx.Err() != nil {
			t.Errorf("a command that was lost ended with %v", err)
		}
		wantPage(t, port, "page")
		late := 8001 + i
		serve(t, vm, late, "late")
		wantPage(t, expose(t, vm, late, 0), "late")
	}
	for _, fw := range vm.Forwards() {
		if fw.Health != smolvm.Active {
			t.Errorf("afterwards: %+v", fw)
		}
	}
	if !strings.Contains(f.log.String(), "was lost, and is back") {
		t.Error("nothing was said of it")
	}
}

// breakChannels breaks this process's connections to guests and says how many there were.
func breakChannels(t *testing.T) (broken int) {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		fd, err := strconv.Atoi(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		peer, err := unix.Getpeername(fd)
		if name, ok := peer.(*unix.SockaddrUnix); err == nil && ok && strings.HasSuffix(name.Name, "/guest.sock") {
			if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
				t.Fatal(err)
			}
			broken++
		}
	}
	return broken
}
