package nettest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TAP is the host's end of a guest's wire.
type TAP interface {
	File() *os.File
	GuestPrefix() netip.Prefix
}

// Guest plays a VM on a TAP: a namespace whose interface "eth0" is a second
// TAP, and this process carries frames between the two as a monitor would. Its
// gateway is the host's end. It goes when the host's interface goes, at the
// latest with the test.
func Guest(t testing.TB, tap TAP, gateway netip.Addr, mac net.HardwareAddr) *Namespace {
	t.Helper()
	n := New(t)
	fd, err := unix.Dup(int(tap.File().Fd()))
	must(t, err)
	must(t, unix.SetNonblock(fd, true))
	hostEnd := os.NewFile(uintptr(fd), "host's tap")
	var guestEnd *os.File
	n.Do(func() (err error) {
		guestEnd, err = openTAP()
		if err != nil {
			return fmt.Errorf("make guest's interface: %w", err)
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
			return err
		}
		if err := configure("eth0", tap.GuestPrefix().String()); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()})
	})
	var wg sync.WaitGroup
	wg.Go(func() { carry(guestEnd, hostEnd) })
	wg.Go(func() { carry(hostEnd, guestEnd) })
	t.Cleanup(func() {
		hostEnd.Close()
		guestEnd.Close()
		wg.Wait()
	})
	return n
}

// carry copies frames until an end is closed.
func carry(dst, src *os.File) {
	frame := make([]byte, 64<<10+64)
	for {
		n, err := src.Read(frame)
		if err != nil {
			return
		}
		// A frame for an interface that is down is lost, as on a wire.
		_, _ = dst.Write(frame[:n])
	}
}

func openTAP() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq("eth0")
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "guest's tap"), nil
}
