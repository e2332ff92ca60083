package forward_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/network/nettest"
)

// serveDatagrams answers the datagrams that come to some port of the guest with
// themselves, and returns where it is exposed.
func (p path) serveDatagrams(t *testing.T) (address string) {
	t.Helper()
	return p.expose(t, forward.UDP, echoDatagrams(t, p.Namespace, "0.0.0.0:0").Port)
}

// echoDatagrams answers datagrams with themselves until the test ends.
func echoDatagrams(t *testing.T, ns *nettest.Namespace, address string) *net.UDPAddr {
	t.Helper()
	var conn net.PacketConn
	ns.Do(func() (err error) {
		conn, err = net.ListenPacket("udp4", address)
		return err
	})
	must(t, conn.(*net.UDPConn).SetReadBuffer(1<<20))
	var wg sync.WaitGroup
	wg.Go(func() {
		block := make([]byte, 64<<10)
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
	return conn.LocalAddr().(*net.UDPAddr)
}

// talk returns a client that hears only what comes from where it sends to.
func talk(t *testing.T, address string) *net.UDPConn {
	t.Helper()
	c, err := net.Dial("udp", address)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * patience))
	return c.(*net.UDPConn)
}

// question sends a datagram and expects it back.
func question(t *testing.T, c *net.UDPConn, datagram []byte) {
	t.Helper()
	_, err := c.Write(datagram)
	must(t, err)
	got := make([]byte, 64<<10)
	n, err := c.Read(got)
	if err != nil || !bytes.Equal(got[:n], datagram) {
		t.Errorf("of %d bytes came %d, %v", len(datagram), n, err)
	}
}

func testDatagrams(t *testing.T, p path) {
	c := talk(t, p.serveDatagrams(t))
	for _, size := range []int{1, 0, 1472, 9000, 65507} {
		question(t, c, random(size))
	}
}

// All of a modest burst arrives, in order. Of a huge one some is lost, as it would be
// on a wire, but nothing is made up, and it goes on afterwards.
func testBursts(t *testing.T, p path) {
	c := talk(t, p.serveDatagrams(t))
	must(t, c.SetReadBuffer(1<<20))
	datagram := random(1000)
	send := func(i int) {
		binary.BigEndian.PutUint32(datagram, uint32(i))
		_, err := c.Write(datagram)
		must(t, err)
	}
	got := make([]byte, 2000)
	receive := func() (int, error) {
		n, err := c.Read(got)
		if err != nil {
			return 0, err
		}
		if n != len(datagram) || !bytes.Equal(got[4:n], datagram[4:]) {
			t.Fatalf("something else came: %d bytes", n)
		}
		return int(binary.BigEndian.Uint32(got)), nil
	}
	const modest, huge = 64, 20_000
	for i := range modest {
		send(i)
	}
	for want := range modest {
		if i, err := receive(); err != nil || i != want {
			t.Fatalf("answer %d of a burst is %d, %v", want, i, err)
		}
	}
	for i := range huge {
		send(modest + i)
	}
	for last := modest - 1; last != -1; { // to the answer to a datagram after the burst
		send(modest + huge)
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		i, err := receive()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue // lost as well
		case err != nil:
			t.Fatal(err)
		case i == modest+huge:
			last = -1
		case i <= last || i > modest+huge:
			t.Fatalf("after %d came %d", last, i)
		default:
			last = i
		}
	}
}

func testManyClientsDatagrams(t *testing.T, p path) {
	const many = 300
	address := p.serveDatagrams(t)
	var clients [many]*net.UDPConn
	for i := range clients {
		clients[i] = talk(t, address)
	}
	for range 3 {
		var wg sync.WaitGroup
		for i, c := range clients {
			wg.Go(func() { question(t, c, binary.BigEndian.AppendUint32(nil, uint32(i))) })
		}
		wg.Wait()
	}
}

// A client that began before the server is answered once there is one.
func testDatagramServerLate(t *testing.T, p path) {
	var conn net.PacketConn
	p.Do(func() (err error) {
		conn, err = net.ListenPacket("udp4", "0.0.0.0:0")
		return err
	})
	guest := conn.LocalAddr().(*net.UDPAddr)
	must(t, conn.Close())
	c := talk(t, p.expose(t, forward.UDP, guest.Port))
	for range 3 {
		// The kernel tells the client of its own forwards that nobody is there.
		_, _ = c.Write([]byte("anybody?"))
	}
	echoDatagrams(t, p.Namespace, guest.String())
	answered := func() bool {
		_, _ = c.Write([]byte("now?"))
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		got := make([]byte, 16)
		n, err := c.Read(got)
		return err == nil && string(got[:n]) == "now?"
	}
	wait(t, "an answer", answered)
}
