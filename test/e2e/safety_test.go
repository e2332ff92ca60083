package e2e

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gofrs/flock"

	"github.com/smolvm/smolvm"
)

// answer listens on an address of this namespace and says secret to whoever
// connects.
func answer(t *testing.T, address, secret string) int {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, secret)
			conn.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// hear connects and returns what the other side says.
func hear(address string) (string, error) {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	said, err := io.ReadAll(conn)
	return string(said), err
}

// TestLocalhostOnly reaches for an exposed port by every address but loopback:
// from the host itself and from its neighbour.
func TestLocalhostOnly(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	run(t, vm, `cat >/root/hello.py <<'EOF'
import socket
s = socket.create_server(("0.0.0.0", 7000))
while True:
    c, _ = s.accept(); c.sendall(b"guest"); c.close()
EOF
python3 /root/hello.py &`)
	waitPort(t, vm, 7000)
	open := answer(t, "0.0.0.0:0", "host")
	for _, transport := range []smolvm.TransportKind{smolvm.NFTables, smolvm.SSHTunnel} {
		t.Run(string(transport), func(t *testing.T) {
			port := expose(t, vm, 7000, 0, smolvm.HostPort(freePort(t)), smolvm.Transport(transport))
			if said, err := hear(fmt.Sprintf("127.0.0.1:%d", port)); err != nil || said != "guest" {
				t.Fatalf("by loopback: %q, %v", said, err)
			}
			try := func(who string) {
				// A port that is open to all shows that the way there is open.
				if said, err := hear(fmt.Sprintf("%s:%d", hostAddress, open)); err != nil || said != "host" {
					t.Errorf("%s cannot reach the control: %q, %v", who, said, err)
				}
				if said, err := hear(fmt.Sprintf("%s:%d", hostAddress, port)); err == nil || said != "" {
					t.Errorf("%s reached the exposed port: %q, %v", who, said, err)
				}
			}
			try("the host itself")
			if err := world.Neighbour.Try(func() error { try("the neighbour"); return nil }); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestGuestIsConfined attacks the host, its neighbour's address space and another
// guest from within a guest. Each attack works while the guards are out.
func TestGuestIsConfined(t *testing.T) {
	f := newFixture(t)
	attacker := f.launch(smolvm.Name("attacker"))
	victim := f.launch(smolvm.Name("victim"))
	serve(t, victim, 8000, "victim")
	expose(t, attacker, 9000, 0)

	// The attacker gives up its own loopback, and sends packets for 127.0.0.1 to
	// its gateway.
	run(t, attacker, `for f in /proc/sys/net/ipv4/conf/*; do echo 1 >$f/route_localnet; echo 0 >$f/rp_filter; done
ip address delete 127.0.0.1/8 dev lo
gateway=$(ip route show default | cut -d' ' -f3)
ip route add 127.0.0.1/32 via $gateway
ip rule add from all lookup main priority 1
cat >/root/attack.py <<'EOF'
import socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1)
    if sys.argv[3:]: s.sendall(sys.argv[3].encode())
    print(s.makefile().read(), end="")
except OSError as e:
    print("failed:", e)
EOF`)
	loopback := answer(t, "127.0.0.1:0", "host loopback")
	other := answer(t, "0.0.0.0:0", "host port")
	attacks := map[string]struct{ command, secret string }{
		"the host's loopback":    {fmt.Sprintf("127.0.0.1 %d", loopback), "host loopback"},
		"the host's LAN address": {fmt.Sprintf("%s %d", hostAddress, other), "host port"},
		"the host's TAP address": {fmt.Sprintf("$(ip route show default | cut -d' ' -f3) %d", other), "host port"},
		"the other guest":        {fmt.Sprintf("%s 8000 \"$(printf 'GET / HTTP/1.0\\r\\n\\r\\n')\n\n\"", victim.IP()), "victim"},
	}
	attack := func(command string) string {
		t.Helper()
		return run(t, attacker, "python3 /root/attack.py "+command)
	}

	// Positive controls: the same attacks with the guards out.
	restore := withoutGuards(t)
	for name, a := range attacks {
		if got := attack(a.command); !strings.Contains(got, a.secret) {
			t.Errorf("without guards, %s cannot be reached either: %q", name, got)
		}
	}
	restore()
	for name, a := range attacks {
		if got := attack(a.command); !strings.HasPrefix(got, "failed:") {
			t.Errorf("the guest reached %s: %q", name, got)
		}
	}
}

// withoutGuards takes every filtering chain out of SmolVM's table, and returns a
// function that puts the table back. Until then it holds the lock that SmolVM would
// mend the table under.
func withoutGuards(t *testing.T) (restore func()) {
	t.Helper()
	lock := flock.New(filepath.Join(runtimeDir(t), "lock"))
	if err := lock.Lock(); err != nil {
		t.Fatal(err)
	}
	table, err := exec.Command("nft", "list", "table", "ip", "smolvm").Output()
	if err != nil {
		t.Fatalf("list table: %v", err)
	}
	var chain string
	var flushed int
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "chain" {
			chain = f[1]
		} else if strings.Contains(line, "type filter hook") {
			nft(t, "flush chain ip smolvm "+chain)
			flushed++
		}
	}
	if flushed == 0 {
		t.Fatalf("the table has no filtering chain:\n%s", table)
	}
	return func() {
		nft(t, "delete table ip smolvm\n"+string(table))
		if err := lock.Close(); err != nil {
			t.Error(err)
		}
	}
}

// nft loads a script in one transaction.
func nft(t *testing.T, script string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s\n%s", err, out, script)
	}
}
