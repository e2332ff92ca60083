package forward_test

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// random returns bytes in which every mistake shows.
func random(n int) []byte {
	b := make([]byte, n)
	source := rand.NewChaCha8([32]byte{1})
	source.Read(b)
	return b
}

// echo answers with what it hears, and ends as the other end does.
func echo(c *net.TCPConn) {
	block := make([]byte, 32<<10)
	for {
		n, err := c.Read(block)
		if _, writeErr := c.Write(block[:n]); writeErr != nil || err != nil {
			return
		}
	}
}

func testEcho(t *testing.T, p path) {
	address := p.serve(t, echo)
	for _, size := range []int{1, 1 << 20} {
		c := connect(t, address)
		data := random(size)
		sent := make(chan error, 1)
		go func() {
			_, err := c.Write(data)
			sent <- errors.Join(err, c.CloseWrite())
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("of %d bytes came %d, %v", size, len(got), err)
		}
		must(t, <-sent)
	}
}

func testMuchData(t *testing.T, p path) {
	for _, direction := range []string{"to guest", "from guest"} {
		t.Run(direction, func(t *testing.T) {
			from, to := p.pair(t)
			if direction == "from guest" {
				from, to = to, from
			}
			for _, c := range []net.Conn{from, to} {
				c.SetDeadline(time.Now().Add(time.Minute))
			}
			data := random(1<<20 + 1) // no power of two, so that a shift shows
			sum := make(chan uint32, 1)
			go func() {
				sent := crc32.NewIEEE()
				w := io.MultiWriter(from, sent)
				for rest := volume; rest > 0; {
					n, err := w.Write(data[:min(len(data), rest)])
					rest -= n
					if err != nil {
						t.Error("send:", err)
						break
					}
				}
				if err := from.CloseWrite(); err != nil {
					t.Error("end:", err)
				}
				sum <- sent.Sum32()
			}()
			received := crc32.NewIEEE()
			block := make([]byte, 1<<20)
			n, err := io.CopyBuffer(struct{ io.Writer }{received}, struct{ io.Reader }{to}, block)
			if err != nil || n != volume {
				t.Errorf("received %d bytes of %d, %v", n, volume, err)
			}
			if sent := <-sum; sent != received.Sum32() {
				t.Error("what was received is not what was sent")
			}
		})
	}
}

func testHalfClose(t *testing.T, p path) {
	for _, first := range []string{"client", "server"} {
		a, b := p.pair(t)
		if first == "server" {
			a, b = b, a
		}
		for _, d := range []struct{ from, to *net.TCPConn }{{a, b}, {b, a}} {
			data := random(1 << 20)
			sent := make(chan error, 1)
			go func() {
				_, err := d.from.Write(data)
				sent <- errors.Join(err, d.from.CloseWrite())
			}()
			got, err := io.ReadAll(d.to)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s first: %d bytes, %v", first, len(got), err)
			}
			must(t, <-sent)
		}
	}
}

// The reader takes little at a time out of less room than there is data.
func testSlowReader(t *testing.T, p path) {
	client, server := p.pair(t)
	must(t, client.SetReadBuffer(256<<10))
	data := random(4 << 20)
	sent := make(chan error, 1)
	go func() {
		_, err := server.Write(data)
		sent <- errors.Join(err, server.CloseWrite())
	}()
	var got []byte
	for piece := make([]byte, 1000); ; {
		n, err := client.Read(piece)
		got = append(got, piece[:n]...)
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
	}
	if !bytes.Equal(got, data) {
		t.Errorf("got %d bytes of %d", len(got), len(data))
	}
	must(t, <-sent)
}

// Every byte that is written arrives, though no other follows.
func testSlowWriter(t *testing.T, p path) {
	client, server := p.pair(t)
	for i := range 1000 {
		from, to := client, server
		if i%2 == 1 {
			from, to = server, client
		}
		want := []byte{byte(i)}
		_, err := from.Write(want)
		must(t, err)
		got := make([]byte, 2)
		if n, err := to.Read(got); err != nil || n != 1 || got[0] != want[0] {
			t.Fatalf("byte %d: %v, %v", i, got[:n], err)
		}
	}
}

// Where nobody reads, sending stops, and the others notice nothing.
func testBackpressure(t *testing.T, p path) {
	const enough = 256 << 20
	stuck := make(chan *net.TCPConn)
	address := p.serve(t, func(c *net.TCPConn) {
		kind := make([]byte, 1)
		if _, err := io.ReadFull(c, kind); err != nil {
			return
		}
		if kind[0] == 'e' {
			echo(c)
			return
		}
		stuck <- c
		<-stuck // until the test is done with it
	})
	client := connect(t, address)
	_, err := client.Write([]byte{'s'})
	must(t, err)
	server := <-stuck
	defer func() { stuck <- nil }()

	data := random(1 << 20)
	other := func() {
		c := connect(t, address)
		defer c.Close()
		_, err := c.Write(append([]byte{'e'}, data[:100_000]...))
		must(t, err)
		got := make([]byte, 100_000)
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data[:len(got)]) {
			t.Fatal("beside a connection that nobody reads:", err)
		}
	}
	sent := 0
	for full := false; !full; {
		client.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := client.Write(data)
		sent += n
		full = errors.Is(err, os.ErrDeadlineExceeded)
		if err != nil && !full {
			t.Fatal(err)
		}
		if sent >= enough {
			t.Fatal("256 MiB went into nowhere")
		}
	}
	for range 10 {
		other()
	}
	must(t, client.CloseWrite())
	server.SetReadDeadline(time.Now().Add(3 * patience))
	if got, err := io.Copy(io.Discard, server); err != nil || got != int64(sent) {
		t.Errorf("sent %d, received %d, %v", sent, got, err)
	}
}

// Silence is no end, and signs of life that the kernel or the channel exchange
// meanwhile change nothing.
func testIdle(t *testing.T, p path) {
	p.link.KeepAlive(time.Millisecond, patience)
	defer p.link.KeepAlive(15*time.Second, 45*time.Second)
	client, server := p.pair(t)
	must(t, client.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 9}))
	exchange := func() {
		for _, d := range []struct{ from, to *net.TCPConn }{{client, server}, {server, client}} {
			_, err := d.from.Write([]byte{'x'})
			must(t, err)
			_, err = io.ReadFull(d.to, make([]byte, 1))
			must(t, err)
		}
	}
	exchange()
	before := segmentsSent(t, client)
	wait(t, "two signs of life", func() bool { return segmentsSent(t, client) >= before+3 }) // one may acknowledge data
	exchange()
}

func segmentsSent(t *testing.T, c *net.TCPConn) uint32 {
	t.Helper()
	raw, err := c.SyscallConn()
	must(t, err)
	var info *unix.TCPInfo
	must(t, errors.Join(err, raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}), err))
	return info.Segs_out
}
