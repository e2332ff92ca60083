package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// patience is how long something that works may take, on a busy machine.
const patience = 20 * time.Second

var quiet = slog.New(slog.DiscardHandler)

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for:", what)
		}
	}
}

// echoServer answers datagrams with themselves until the test ends.
func echoServer(t testing.TB, address string) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		block := make([]byte, blockSize)
		for {
			n, from, err := conn.ReadFrom(block)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				conn.WriteTo(block[:n], from)
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
	})
	return conn.(*net.UDPConn)
}

// dialTo is the way to a guest that is here.
func dialTo(address string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", address)
	}
}

// startDatagrams serves some port until the test ends.
func startDatagrams(t testing.TB, idle time.Duration, dial func(context.Context) (net.Conn, error)) (*datagramServer, int) {
	t.Helper()
	r, err := reserveDatagrams(0)
	if err != nil {
		t.Fatal(err)
	}
	s := serveDatagramsFor(idle, r, quiet, newBuffers(), dial)
	t.Cleanup(s.close)
	return s, r.port
}

// talk returns a client of a port.
func talk(t testing.TB, host string, port int) *net.UDPConn {
	t.Helper()
	c, err := net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.UDPConn)
}

// wantEcho sends and expects the same back. A client that is connected hears only
// what comes from where it sends to.
func wantEcho(t *testing.T, c net.Conn, datagram []byte) {
	t.Helper()
	if _, err := c.Write(datagram); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, blockSize)
	n, err := c.Read(got)
	if err != nil || !bytes.Equal(got[:n], datagram) {
		t.Fatalf("sent %d bytes, got %d, %v", len(datagram), n, err)
	}
}

func TestDatagrams(t *testing.T) {
	guest := echoServer(t, "127.0.0.1:0")
	s, port := startDatagrams(t, conversationIdle, dialTo(guest.LocalAddr().String()))
	bytesSent := int64(0)
	for _, host := range []string{"127.0.0.1", "::1"} {
		c := talk(t, host, port)
		for _, size := range []int{1, 0, 1472, 65507} {
			wantEcho(t, c, bytes.Repeat([]byte{'x'}, size))
			bytesSent += int64(size)
		}
	}
	want := Traffic{Open: 2, Total: 2, ToGuest: bytesSent, FromGuest: bytesSent}
	eventually(t, "traffic to be counted", func() bool { return s.traffic() == want })
}

func TestDatagramsWaitForTheDial(t *testing.T) {
	guest := echoServer(t, "127.0.0.1:0")
	var calls atomic.Int32
	connected := make(chan struct{})
	s, port := startDatagrams(t, conversationIdle, func(ctx context.Context) (net.Conn, error) {
		if calls.Add(1) == 1 {
			<-connected
		}
		return dialTo(guest.LocalAddr().String())(ctx)
	})
	early := talk(t, "127.0.0.1", port)
	for i := range 100 {
		if _, err := early.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the first dial", func() bool { return calls.Load() == 1 })
	wantEcho(t, talk(t, "127.0.0.1", port), []byte("others are served"))
	close(connected)
	for i := range 100 {
		got := make([]byte, 2)
		if n, err := early.Read(got); err != nil || n != 1 || got[0] != byte(i) {
			t.Fatalf("answer %d is %v, %v", i, got[:n], err)
		}
	}
	if n := s.traffic().Total; n != 2 {
		t.Errorf("%d conversations", n)
	}
}

func TestDatagramQueuesAreBounded(t *testing.T) {
	for _, size := range []int{0, 1, 65507} {
		c := &conversation{server: &datagramServer{began: time.Now()}, queue: make(chan []byte, maxQueued)}
		datagram := make([]byte, size)
		for range 2 * maxQueued {
			c.offer(datagram)
		}
		n := len(c.queue)
		if n > maxQueued || n*size > maxQueuedBytes || (n+1)*size <= maxQueuedBytes && n < maxQueued {
			t.Errorf("%d datagrams of %d bytes are queued", n, size)
		}
		if got := c.queued.Load(); got != int64(n*size) {
			t.Errorf("%d bytes count as queued, not %d", got, n*size)
		}
	}
}

func TestIdleConversationsEnd(t *testing.T) {
	guest := echoServer(t, "127.0.0.1:0")
	s, port := startDatagrams(t, 20*time.Millisecond, dialTo(guest.LocalAddr().String()))
	c := talk(t, "127.0.0.1", port)
	for total := range int64(3) {
		wantEcho(t, c, []byte("hello"))
		eventually(t, "the conversation's end", func() bool { return s.traffic().Open == 0 })
		if got := s.traffic().Total; got != total+1 {
			t.Errorf("%d conversations, want %d", got, total+1)
		}
	}
}

func TestOldestConversationMakesRoom(t *testing.T) {
	guest := echoServer(t, "127.0.0.1:0")
	s, port := startDatagrams(t, conversationIdle, dialTo(guest.LocalAddr().String()))
	first := talk(t, "127.0.0.1", port)
	wantEcho(t, first, []byte("first"))
	second := talk(t, "127.0.0.1", port)
	wantEcho(t, second, []byte("second"))
	wantEcho(t, first, []byte("first again")) // so the second is the oldest
	for range maxConversations - 1 {
		wantEcho(t, talk(t, "127.0.0.1", port), []byte("more"))
	}
	eventually(t, "one to end", func() bool { return s.traffic().Open == maxConversations })
	wantEcho(t, first, []byte("still"))
	if got := s.traffic().Total; got != maxConversations+1 {
		t.Errorf("%d conversations in all: the first was ended", got)
	}
	wantEcho(t, second, []byte("anew"))
	if got := s.traffic().Total; got != maxConversations+2 {
		t.Errorf("%d conversations in all: the second was not ended", got)
	}
}

func TestDatagramsBeforeTheServer(t *testing.T) {
	later := echoServer(t, "127.0.0.1:0")
	address := later.LocalAddr().String()
	later.Close()
	s, port := startDatagrams(t, conversationIdle, dialTo(address))
	c := talk(t, "127.0.0.1", port)
	for range 10 { // the kernel's refusals come back in between
		if _, err := c.Write([]byte("anybody?")); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the datagrams to be sent", func() bool { return s.traffic().ToGuest > 0 })
	if got := s.traffic(); got.Open != 1 || got.Total != 1 {
		t.Fatalf("traffic is %+v", got)
	}
	echoServer(t, address)
	if _, err := c.Write([]byte("now")); err != nil {
		t.Fatal(err)
	}
	for got := make([]byte, 16); ; { // some of the earlier ones may have been on their way
		n, err := c.Read(got)
		if err != nil {
			t.Fatal(err)
		}
		if string(got[:n]) == "now" {
			break
		}
	}
	if got := s.traffic(); got.Open != 1 || got.Total != 1 {
		t.Errorf("traffic is %+v", got)
	}
}

func TestDatagramServerCloses(t *testing.T) {
	guest := echoServer(t, "127.0.0.1:0")
	before := runtime.NumGoroutine()
	r, err := reserveDatagrams(0)
	if err != nil {
		t.Fatal(err)
	}
	dialing := make(chan struct{}, 1)
	var calls atomic.Int32
	s := serveDatagrams(r, quiet, newBuffers(), func(ctx context.Context) (net.Conn, error) {
		if calls.Add(1) > 1 { // the second never gets through
			dialing <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return dialTo(guest.LocalAddr().String())(ctx)
	})
	wantEcho(t, talk(t, "::1", r.port), []byte("hello"))
	if _, err := talk(t, "::1", r.port).Write([]byte("hello?")); err != nil {
		t.Fatal(err)
	}
	<-dialing
	s.close()
	if got := s.traffic(); got.Open != 0 || got.Total != 2 {
		t.Errorf("traffic is %+v", got)
	}
	again, err := reserveDatagrams(r.port)
	if err != nil {
		t.Fatal(err)
	}
	again.close()
	eventually(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}

func TestDatagramPortsInUse(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1", "0.0.0.0", "::"} {
		port, pid := holdDatagrams(t, host)
		r, err := reserveDatagrams(port)
		if !errors.Is(err, errBusy) {
			t.Errorf("%s: %v", host, err)
		}
		if err == nil {
			r.close()
		}
		if got := Holder(UDP, port); !strings.HasSuffix(got, fmt.Sprintf(", pid %d", pid)) {
			t.Errorf("%s is held by %q", host, got)
		}
	}
	// TCP's ports are others.
	tcp, err := reserve(0)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.close()
	udp, err := reserveDatagrams(tcp.port)
	if err != nil {
		t.Fatal(err)
	}
	udp.close()
}

// holdDatagrams holds some UDP port in another process until the test ends.
func holdDatagrams(t *testing.T, host string) (port, pid int) {
	t.Helper()
	conn, err := net.ListenPacket("udp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	file, err := conn.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command("cat")
	cmd.ExtraFiles = []*os.File{file}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	return conn.LocalAddr().(*net.UDPAddr).Port, cmd.Process.Pid
}
