package linktest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"runtime/pprof"
	"sync"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/guestlink/linktest"
	"github.com/smolvm/smolvm/internal/network/nettest"
)

func TestMain(m *testing.M) {
	linktest.Main()
	nettest.Main(m.Run)
}

// One session after another reaches into the guest's network.
func TestSessions(t *testing.T) {
	ns := nettest.New(t)
	l := ns.Listen("127.0.0.1:80")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello")
			c.Close()
		}
	}()
	g, err := linktest.Start(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}()
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		port, err := g.Dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		link, err := guestlink.Dial(ctx, port, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		conn, err := link.DialContext(ctx, "tcp", "127.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
			t.Errorf("%q, %v", b, err)
		}
		link.Close()
	}
}

// Two thousand connections are open, one that is flooded and not read among them: each
// of the others gets its answer, and all are gone in the end.
func TestManyConnections(t *testing.T) {
	const connections = 2000
	ns, link := openLink(t)
	serve(t, ns.Listen("127.0.0.1:80"), func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	flooding := make(chan struct{})
	serve(t, ns.Listen("127.0.0.1:81"), func(c *net.TCPConn) {
		buf := make([]byte, 1<<20)
		for n := 0; ; n++ {
			if n == 2 {
				close(flooding)
			}
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	flooded, err := link.DialContext(ctx, "tcp", "127.0.0.1:81")
	if err != nil {
		t.Fatal(err)
	}
	<-flooding
	before := runtime.NumGoroutine()
	conns := make([]*guestlink.Conn, connections)
	var group errgroup
	for i := range conns {
		group.Go(func() (err error) {
			conns[i], err = link.DialContext(ctx, "tcp", "127.0.0.1:80")
			return err
		})
	}
	group.wait(t)
	// All of them at once, each with more than one packet.
	data := make([]byte, 40<<10)
	for i, conn := range conns {
		group.Go(func() error {
			_, err := conn.Write(append([]byte{byte(i)}, data...))
			return errors.Join(err, conn.CloseWrite())
		})
		group.Go(func() error {
			got, err := io.ReadAll(conn)
			if err == nil && (len(got) != 1+len(data) || got[0] != byte(i)) {
				err = fmt.Errorf("connection %d got %d bytes", i, len(got))
			}
			return errors.Join(err, conn.Close())
		})
	}
	group.wait(t)
	// The guest confirms the end of each.
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for runtime.NumGoroutine() > before+10 {
		select {
		case <-again.C:
		case <-ctx.Done():
			_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
	if _, err := io.ReadFull(flooded, make([]byte, 10<<20)); err != nil {
		t.Error(err)
	}
	flooded.Close()
}

// Connections that come and go while others send both ways do not hold each other up.
func TestComingAndGoing(t *testing.T) {
	ns, link := openLink(t)
	serve(t, ns.Listen("127.0.0.1:80"), func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	defer context.AfterFunc(ctx, func() { link.Close() })()
	data := make([]byte, 300<<10)
	var group errgroup
	for range 50 {
		group.Go(func() error {
			for range 10 {
				conn, err := link.DialContext(ctx, "tcp", "127.0.0.1:80")
				if err != nil {
					return err
				}
				wrote := make(chan error, 1)
				go func() {
					_, err := conn.Write(data)
					wrote <- errors.Join(err, conn.CloseWrite())
				}()
				n, err := io.Copy(io.Discard, conn)
				if err == nil && n != int64(len(data)) {
					err = fmt.Errorf("got %d bytes", n)
				}
				if err := errors.Join(err, <-wrote, conn.Close()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.wait(t)
}

// errgroup runs functions and collects their errors.
type errgroup struct {
	wg   sync.WaitGroup
	mu   sync.Mutex
	errs []error
}

func (g *errgroup) Go(f func() error) {
	g.wg.Go(func() {
		if err := f(); err != nil {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.errs = append(g.errs, err)
		}
	})
}

func (g *errgroup) wait(t *testing.T) {
	t.Helper()
	g.wg.Wait()
	if len(g.errs) > 0 {
		t.Fatalf("%d errors, such as %v", len(g.errs), g.errs[0])
	}
}
