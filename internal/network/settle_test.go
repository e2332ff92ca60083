package network

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// unattended ends the watch over a Host's interfaces, so that what the test takes away
// stays away.
func unattended(h *Host) { h.reconciler.close() }

// wait waits until ok.
func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// holdLock keeps everybody from changing what VMs have in common, until release.
func holdLock(t *testing.T, h *Host) (release func()) {
	t.Helper()
	dir, err := h.StateDir()
	if err != nil {
		t.Fatal(err)
	}
	lock, err := lockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := lock.Close(); err != nil {
			t.Error(err)
		}
	}
}

// needs is all that VMs need of the host.
func needs(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(run(t, "nft", "--stateless", "list", "ruleset"))
	b.WriteString(run(t, "ip", "route", "show", "table", "main"))
	links, err := dump(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		a := link.Attrs()
		fmt.Fprintln(&b, a.Index, a.Name, a.Alias, a.Group, a.MTU, a.Flags)
		addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
		fmt.Fprintln(&b, addresses, err) // it may be renamed this moment
		paths := []string{ipv4Conf(a.Name, "forwarding")}
		if _, ours := slotOf(a.Name); ours {
			for _, s := range tapSettings(a.Name, false) {
				paths = append(paths, s.path)
			}
		}
		for _, path := range paths {
			value, err := readSetting(path)
			fmt.Fprintln(&b, path, value, err)
		}
	}
	return b.String()
}

// rest lets some intervals go by.
func rest() {
	for range 4 {
		<-time.After(settingsInterval)
	}
}

// settle waits until a Host has mended what was to be mended.
func settle(t *testing.T, h *Host) {
	t.Helper()
	wait(t, "the network is settled", func() bool { return !h.reconciler.has(everything) && h.reconciler.settled() })
	holdLock(t, h)() // and the last look is over
}

// watchLock returns what tells whether anybody has opened the lock since it was last asked.
func watchLock(t *testing.T, h *Host) (opened func() bool) {
	t.Helper()
	dir, err := h.StateDir()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(dir, lockFile), unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	return func() bool {
		n, _ := unix.Read(fd, make([]byte, 4096))
		return n > 0
	}
}
