package guestlink

import (
	"bytes"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guest"
	"github.com/smolvm/smolvm/internal/guestapi"
)

func newKey(t *testing.T) (private []byte, signer ssh.Signer) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	if signer, err = ssh.NewSignerFromKey(key); err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block), signer
}

// network is a guest whose SSH server also listens on a network.
type network struct {
	address    string
	host, user ssh.Signer
	link       *Link
}

func startNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{}
	private, host := newKey(t)
	_, n.user = newKey(t)
	n.host = host
	system := newFakeSystem()
	server := guest.NewServer(system, reaper, discard())
	p := newPort()
	channel := make(chan error, 1)
	go func() { channel <- server.ServeChannel(p, func([]byte) {}) }()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeNetwork(listener) }()
	t.Cleanup(func() {
		p.close()
		<-channel
		listener.Close()
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	n.address = listener.Addr().String()
	n.link = dial(t, p)
	if client, err := n.dial("root", n.user); err == nil {
		client.Close()
		t.Error("logged in to a guest without an identity")
	}
	err = n.link.Configure(t.Context(), guestapi.Identity{
		HostKey: private, AuthorizedKeys: append([]byte("# mine\n\n"), ssh.MarshalAuthorizedKey(n.user.PublicKey())...), Env: []string{"COLOR=red"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *network) dial(user string, keys ...ssh.Signer) (*ssh.Client, error) {
	return ssh.Dial("tcp", n.address, &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(keys...), ssh.Password("")}, HostKeyCallback: ssh.FixedHostKey(n.host.PublicKey()),
	})
}

func (n *network) client(t *testing.T) *ssh.Client {
	t.Helper()
	c, err := n.dial("root", n.user)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func newSession(t *testing.T, c *ssh.Client) *ssh.Session {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestNetworkLogin(t *testing.T) {
	n := startNetwork(t)
	n.client(t) // the right user and key can
	_, other := newKey(t)
	for name, try := range map[string]func() (*ssh.Client, error){
		"another key": func() (*ssh.Client, error) { return n.dial("root", other) },
		"no key":      func() (*ssh.Client, error) { return n.dial("root") },
		"other user":  func() (*ssh.Client, error) { return n.dial("nobody", n.user) },
	} {
		if c, err := try(); err == nil {
			c.Close()
			t.Errorf("%s: logged in", name)
		}
	}
}

// Who logs in on the network cannot do what is the host's.
func TestNetworkIsNotTheHost(t *testing.T) {
	n := startNetwork(t)
	c := n.client(t)
	for _, request := range []string{guestapi.RequestConfigure, guestapi.RequestPowerOff, guestapi.RequestWatchListeners} {
		if ok, _, err := c.SendRequest(request, true, []byte("{}")); ok || err != nil {
			t.Errorf("%s: %v, %v", request, ok, err)
		}
	}
	if channel, _, err := c.OpenChannel(guestapi.ChannelExec, guestapi.Encode(&guestapi.Exec{Argv: []string{"true"}})); err == nil {
		channel.Close()
		t.Error("started a command as the host does")
	}
}

func TestNetworkSession(t *testing.T) {
	n := startNetwork(t)
	c := n.client(t)
	s := newSession(t, c)
	if err := s.Setenv("SIZE", "big"); err != nil {
		t.Error(err)
	}
	var stderr bytes.Buffer
	s.Stderr = &stderr
	s.Stdin = strings.NewReader("input")
	out, err := s.Output("cat; echo $COLOR $SIZE; echo err >&2; exit 9")
	var exit *ssh.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 9 || string(out) != "inputred big\n" || stderr.String() != "err\n" {
		t.Errorf("got %q, %q, %v", out, &stderr, err)
	}
	if err := newSession(t, c).Run("kill -TERM $$"); !errors.As(err, &exit) || exit.Signal() != "TERM" {
		t.Errorf("got %v", err)
	}
	s = newSession(t, c)
	if err := s.RequestSubsystem("no-such-subsystem"); err == nil {
		t.Error("an unknown subsystem was started")
	}
	address := serveTCP(t, "tcp", "127.0.0.1:0", func(conn *net.TCPConn) { _, _ = conn.Write([]byte("tunnel")) })
	conn, err := c.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if data, err := io.ReadAll(conn); err != nil || string(data) != "tunnel" {
		t.Errorf("got %q, %v", data, err)
	}
}

// OpenSSH waits for the server to close what ssh -W carries, though both sides have ended it.
func TestNetworkTunnelIsClosed(t *testing.T) {
	n := startNetwork(t)
	address := serveTCP(t, "tcp", "127.0.0.1:0", func(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) })
	to := netip.MustParseAddrPort(address)
	channel, requests, err := n.client(t).OpenChannel(guestapi.ChannelDial, ssh.Marshal(guestapi.Dial{Host: to.Addr().String(), Port: uint32(to.Port())}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(channel, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := channel.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(channel); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	ssh.DiscardRequests(requests) // they end when the server closes the channel
}

func TestTerminal(t *testing.T) {
	n := startNetwork(t)
	c := n.client(t)
	s := newSession(t, c)
	if err := s.RequestPty("xterm-test", 41, 82, ssh.TerminalModes{ssh.ECHO: 0, ssh.VINTR: 3, ssh.ONLCR: 1}); err != nil {
		t.Fatal(err)
	}
	out := newWatched()
	s.Stdout = out
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	// The terminal is the controlling one, or /dev/tty would not open.
	if err := s.Start(`trap 'echo resized; stty size' WINCH; stty size </dev/tty; echo $TERM; tty >/dev/null && echo tty; stty -a | tr ' ;' '\n\n' | grep -x -e -echo; until [ "$line" = typed ]; do read line; done; echo "[$line]"; cat; echo end`); err != nil {
		t.Fatal(err)
	}
	out.await(t, "41 82\r\nxterm-test\r\ntty\r\n-echo\r\n")
	if err := s.WindowChange(10, 20); err != nil {
		t.Fatal(err)
	}
	out.await(t, "resized\r\n10 20\r\n") // it interrupts a read: no typing before
	if _, err := in.Write([]byte("typed\n")); err != nil {
		t.Fatal(err)
	}
	out.await(t, "[typed]\r\n")
	if _, err := in.Write([]byte{4}); err != nil { // end of input
		t.Fatal(err)
	}
	if err := s.Wait(); err != nil {
		t.Error(err)
	}
	if got := out.await(t, "end\r\n"); strings.Contains(got, "\ntyped") {
		t.Errorf("echoed: %q", got)
	}
}

// All of a terminal's output is there, however quickly its command ends; and a
// connection that ends hangs up.
func TestTerminalEnds(t *testing.T) {
	n := startNetwork(t)
	c := n.client(t)
	for range 20 {
		s := newSession(t, c)
		if err := s.RequestPty("xterm", 24, 80, nil); err != nil {
			t.Fatal(err)
		}
		out, err := s.Output("head -c 3000 /dev/zero | tr '\\0' x; sleep 30 & echo end")
		if err != nil || len(out) != 3000+len("end\r\n") {
			t.Fatalf("%d bytes, %v", len(out), err)
		}
	}
	s := newSession(t, c)
	if err := s.RequestPty("xterm", 24, 80, nil); err != nil {
		t.Fatal(err)
	}
	out := newWatched()
	s.Stdout = out
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Shell(); err != nil {
		t.Fatal(err)
	}
	// In place of the interactive shell, whose own handling of SIGHUP takes its time.
	if _, err := in.Write([]byte("stty -echo; exec sh -c 'echo pid=$$.; sleep 60; true'\n")); err != nil {
		t.Fatal(err)
	}
	text := out.await(t, ".\r\n")
	pid := text[strings.LastIndex(text, "pid=")+4 : strings.LastIndex(text, ".\r\n")]
	c.Close()
	awaitGone(t, pid)
}
