package forward_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func testConnectionsAtOnce(t *testing.T, p path) {
	const many = 2000
	address := p.serve(t, echo)
	conns := make([]net.Conn, many)
	each := func(f func(i int) error) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range many {
			wg.Go(func() {
				if err := f(i); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	exchange := func(i int) error {
		want := fmt.Sprintf("connection %4d", i)
		if _, err := io.WriteString(conns[i], want); err != nil {
			return err
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(conns[i], got); err != nil || string(got) != want {
			return fmt.Errorf("got %q, %w", got, err)
		}
		return nil
	}
	each(func(i int) (err error) {
		conns[i], err = net.DialTimeout("tcp", address, 3*patience)
		if err != nil {
			return err
		}
		conns[i].SetDeadline(time.Now().Add(6 * patience))
		return exchange(i)
	})
	each(exchange) // now that all are open
}

func testShortConnections(t *testing.T, p path) {
	const many, atOnce = 5000, 16
	address := p.serve(t, func(c *net.TCPConn) { io.WriteString(c, "brief") })
	brief := func() error {
		c, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if got, err := io.ReadAll(c); err != nil || string(got) != "brief" {
			return fmt.Errorf("got %q, %w", got, err)
		}
		return nil
	}
	must(t, brief())
	before := leavings(t, p)
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for range many / atOnce {
				if err := brief(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	var after leftover
	wait(t, fmt.Sprintf("nothing to be left but %+v", before), func() bool {
		after = leavings(t, p)
		return after.sockets <= before.sockets && after.goroutines <= before.goroutines &&
			after.guestFiles <= before.guestFiles && after.flows <= before.flows
	})
}

// leftover is what connections may leave.
type leftover struct{ sockets, goroutines, guestFiles, flows int }

func leavings(t *testing.T, p path) leftover {
	t.Helper()
	guestFiles, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.guest.PID()))
	must(t, err)
	return leftover{openFiles(t, "socket:"), runtime.NumGoroutine(), len(guestFiles), liveFlows(t)}
}

// openFiles counts the files of one kind that this process has open.
func openFiles(t *testing.T, kind string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fd/*")
	must(t, err)
	n := 0
	for _, f := range files {
		if target, err := os.Readlink(f); err == nil && strings.HasPrefix(target, kind) {
			n++
		}
	}
	return n
}

// liveFlows counts the TCP connections that the kernel's connection tracking takes
// for alive: not those that are over and wait for late packets.
func liveFlows(t *testing.T) int {
	t.Helper()
	// As the kernel numbers them.
	const timeWait, closed = 7, 8
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Fatal(err)
	}
	live := 0
	for _, f := range flows {
		if tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP); ok && tcp.State != timeWait && tcp.State != closed {
			live++
		}
	}
	return live
}
