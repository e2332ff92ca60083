package network

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
)

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) count(s string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.b.String(), s)
}

// TestWhatCannotBeMended takes a guest's interface its name and gives it to another. While
// that lasts nothing guards the guest, so it is cut off; afterwards all is mended.
func TestWhatCannotBeMended(t *testing.T) {
	h := testHost(t)
	var log buffer
	h.log = slog.New(slog.NewTextHandler(io.MultiWriter(&log, t.Output()), nil))
	i := attach(t, h, Attachment{VM: "a", Egress: true})
	settle(t, h)
	want := needs(t)

	release := holdLock(t, h)
	run(t, "sh", "-ec", "ip link set smol0 down; ip link set smol0 name other0; ip link set other0 up; ip link add smol0 type veth peer cable0")
	release()
	up := func(name string) bool {
		ifc, err := net.InterfaceByName(name)
		return err == nil && ifc.Flags&net.FlagUp != 0
	}
	wait(t, "the guest is cut off", func() bool { return !up("other0") && log.count("cannot be mended") > 0 })
	rest() // it is tried again, and not complained of again
	if n := log.count("cannot be mended"); n != 1 {
		t.Errorf("it complained %d times", n)
	}
	if link, err := netlink.LinkByIndex(i.Index); err != nil || link.Attrs().Name != "other0" {
		t.Fatalf("the interface is %v, %v", link, err)
	}
	run(t, "ip", "link", "del", "smol0")
	wait(t, "all is mended", func() bool { return needs(t) == want })
}
