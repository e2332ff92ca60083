package forward

import (
	"bytes"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tcpPair returns two ends of a connection.
func tcpPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{dialed, accepted} {
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
	}
	return dialed.(*net.TCPConn), accepted.(*net.TCPConn)
}

// What is copied is the same whether there are files left for a pipe or not.
func TestCopyStreamWithAndWithoutPipes(t *testing.T) {
	for _, without := range []bool{false, true} {
		client, src := tcpPair(t)
		dst, server := tcpPair(t)
		buffers := newBuffers()
		defer buffers.close()
		var count atomic.Int64
		restore := func() {}
		if without {
			restore = openNoMoreFiles(t)
		}
		if p, err := buffers.pipes.get(); (err != nil) != without {
			restore()
			t.Fatalf("a pipe, where there should be none: %v, or the other way round: %v, %v", without, p, err)
		} else if err == nil {
			buffers.pipes.put(p)
		}
		copied := make(chan error, 1)
		go func() {
			err := copyStream(dst, src, &count, buffers)
			dst.CloseWrite()
			copied <- err
		}()
		data := bytes.Repeat([]byte("0123456789"), 300_000)
		go func() {
			client.Write(data)
			client.CloseWrite()
		}()
		got, err := io.ReadAll(server)
		copyErr := <-copied
		restore()
		if err != nil || copyErr != nil || !bytes.Equal(got, data) || count.Load() != int64(len(data)) {
			t.Errorf("without pipes %v: %d bytes of %d, %d counted, %v, %v", without, len(got), len(data), count.Load(), err, copyErr)
		}
	}
}

// openNoMoreFiles keeps this process from opening files until restore is called.
func openNoMoreFiles(t *testing.T) (restore func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	}
}
