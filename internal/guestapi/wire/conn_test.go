package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func socketPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { conns[i].Close() })
	}
	return conns[0], conns[1]
}

// much is more than a socket and the queue hold before data has to wait.
var much = bytes.Repeat([]byte("much"), 4<<20)

// While the other end reads nothing, SSH can write and those who send data wait.
func TestWriteDoesNotWait(t *testing.T) {
	raw, end := socketPair(t)
	if err := raw.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	filled, err := raw.Write(much)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the socket takes all: %v", err)
	}
	if err := raw.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	c := NewConn(raw)
	if n, err := c.Write(much); n != len(much) || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	paced := make(chan error, 1)
	go func() {
		_, err := c.Pace(c).Write([]byte("paced"))
		paced <- err
	}()
	got := make([]byte, filled+len(much)/2)
	if _, err := io.ReadFull(end, got); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("control")); err != nil {
		t.Fatal(err)
	}
	rest := make([]byte, len(much)-len(much)/2+len("control")+len("paced"))
	if _, err := io.ReadFull(end, rest); err != nil {
		t.Fatal(err)
	}
	if err := <-paced; err != nil {
		t.Error(err)
	}
	if !bytes.HasPrefix(rest, much[len(much)/2:]) || !bytes.HasSuffix(rest, []byte("paced")) && !bytes.HasSuffix(rest, []byte("control")) {
		t.Error("what arrived is not what was written")
	}
	c.Close()
}

// Those who wait for room are told when there will be none.
func TestPaceEnds(t *testing.T) {
	for name, finish := range map[string]func(c *Conn, end net.Conn){
		"close":         func(c *Conn, _ net.Conn) { c.Close() },
		"the other end": func(_ *Conn, end net.Conn) { end.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			raw, end := socketPair(t)
			c := NewConn(raw)
			defer c.Close()
			paced := make(chan error, 1)
			go func() {
				w := c.Pace(c)
				for {
					if _, err := w.Write(much); err != nil {
						paced <- err
						return
					}
				}
			}()
			if _, err := io.ReadFull(end, make([]byte, len(much))); err != nil {
				t.Fatal(err)
			}
			finish(c, end)
			if err := <-paced; err == nil {
				t.Error("no error")
			}
			if _, err := c.Write([]byte("x")); err == nil {
				t.Error("wrote to what is gone")
			}
		})
	}
}

// One who asks and asks, and does not read the answers, does not fill the memory.
func TestWriteEnds(t *testing.T) {
	raw, _ := socketPair(t)
	c := NewConn(raw)
	defer c.Close()
	written := 0
	for written < 2*deadAt {
		n, err := c.Write(much)
		written += n
		if err != nil {
			if !errors.Is(err, errNotRead) {
				t.Error(err)
			}
			return
		}
	}
	t.Errorf("took %d bytes", written)
}

// Close lets what was written arrive.
func TestCloseWritesTheRest(t *testing.T) {
	raw, end := socketPair(t)
	c := NewConn(raw)
	got := make(chan []byte, 1)
	if _, err := c.Write(much); err != nil {
		t.Fatal(err)
	}
	go func() {
		data, _ := io.ReadAll(end)
		got <- data
	}()
	c.Close()
	if data := <-got; !bytes.Equal(data, much) {
		t.Errorf("%d bytes of %d", len(data), len(much))
	}
}

// Close waits as long as the other end reads, however slowly, but not for one that does not.
func TestCloseWaitsForReaders(t *testing.T) {
	for _, reads := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			raw, end := net.Pipe()
			c := NewConn(raw)
			sent := much[:8*stepSize]
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			got := make(chan int, 1)
			go func() {
				n, step := 0, make([]byte, stepSize)
				for err := error(nil); reads && err == nil; {
					time.Sleep(stallTimeout * 9 / 10)
					var m int
					m, err = io.ReadFull(end, step)
					n += m
				}
				got <- n
			}()
			before := time.Now()
			c.Close()
			end.Close()
			took, n := time.Since(before), <-got
			switch {
			case reads && n != len(sent):
				t.Errorf("%d bytes of %d arrived in %v", n, len(sent), took)
			case !reads && took != stallTimeout:
				t.Errorf("waited %v for one that does not read", took)
			}
		})
	}
}

// Copy passes on all there is, through whatever buffers it takes.
func TestBuffersCopy(t *testing.T) {
	var b Buffers
	data := bytes.Repeat([]byte("0123456789abcdef"), 20000)
	var from []io.Reader
	for rest := data; len(rest) > 0; {
		n := min(len(rest), 3*smallSize+len(rest)%7)
		from = append(from, bytes.NewReader(rest[:n]), bytes.NewReader(nil))
		rest = rest[n:]
	}
	var to bytes.Buffer
	if err := b.Copy(&to, io.MultiReader(from...)); err != nil || !bytes.Equal(to.Bytes(), data) {
		t.Errorf("%d of %d bytes, %v", to.Len(), len(data), err)
	}
	broken := errors.New("broken")
	if err := b.Copy(io.Discard, io.MultiReader(bytes.NewReader(data), brokenEnd{broken})); !errors.Is(err, broken) {
		t.Errorf("reading: %v", err)
	}
	if err := b.Copy(brokenEnd{broken}, bytes.NewReader(data)); !errors.Is(err, broken) {
		t.Errorf("writing: %v", err)
	}
}

type brokenEnd struct{ err error }

func (b brokenEnd) Read([]byte) (int, error)  { return 0, b.err }
func (b brokenEnd) Write([]byte) (int, error) { return 0, b.err }
