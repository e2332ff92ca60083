package network

import (
	"io"
	"log/slog"
	"net"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/smolvm/smolvm/internal/network/nettest"
)

// TestWhatCannotBeMended takes a guest's interface its name and gives it to another. While
// that lasts nothing guards the guest, so it is cut off; afterwards all is mended.
func TestWhatCannotBeMended(t *testing.T) {
	h := testHost(t)
	var log nettest.Log
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
	wait(t, "the guest is cut off", func() bool { return !up("other0") && log.Count("cannot be mended") > 0 })
	rest() // it is tried again, and not complained of again
	if n := log.Count("cannot be mended"); n != 1 {
		t.Errorf("it complained %d times", n)
	}
	if link, err := netlink.LinkByIndex(i.Index); err != nil || link.Attrs().Name != "other0" {
		t.Fatalf("the interface is %v, %v", link, err)
	}
	run(t, "ip", "link", "del", "smol0")
	wait(t, "all is mended", func() bool { return needs(t) == want })
}
