package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// remedy is one thing that must be so, and what makes it so.
type remedy struct {
	what string
	good bool
	make func() error
}

// apply mends what is not as it should be, in order, and says what that was.
func apply(link string, remedies []remedy) (mended []string, err error) {
	for _, r := range remedies {
		if r.good {
			continue
		}
		if err := r.make(); err != nil {
			return mended, fmt.Errorf("configure interface %s: %s: %w", link, r.what, err)
		}
		mended = append(mended, r.what)
	}
	return mended, nil
}

// mark sees to what the guards know a guest's interface by. It comes before anything
// that relies on the guards.
func (i *Interface) mark(link netlink.Link) (mended []string, err error) {
	group := uint32(0)
	if i.egress {
		group = egressGroup
	}
	return apply(i.Name, []remedy{
		{"name", link.Attrs().Name == i.Name, func() error { return rename(link, i.Name) }},
		{"group", link.Attrs().Group == group, func() error { return netlink.LinkSetGroup(link, int(group)) }},
	})
}

// rename gives an interface its name back. Under another it is not guarded, so if that
// fails it is shut down. Kernels before 6.2 do not rename what is up anyway; arrange
// brings it up again.
func rename(link netlink.Link, name string) error {
	err := netlink.LinkSetName(link, name)
	if err == nil {
		return nil
	}
	if down := netlink.LinkSetDown(link); down != nil {
		return errors.Join(err, down)
	}
	if errors.Is(err, unix.EBUSY) {
		return netlink.LinkSetName(link, name)
	}
	return err
}

// arrange sees to the rest of an interface. The guards must stand.
func (i *Interface) arrange(link netlink.Link) (mended []string, err error) {
	addresses, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", i.Name, err)
	}
	own := prefix31(i.HostAddr)
	attrs := link.Attrs()
	var remedies []remedy
	for _, s := range tapSettings(i.Name, i.egress) {
		good, err := s.holds()
		if err != nil {
			return nil, err
		}
		remedies = append(remedies, remedy{s.path, good, func() error { return writeSettings([]setting{s}) }})
	}
	remedies = append(remedies,
		remedy{
			"hardware address", bytes.Equal(attrs.HardwareAddr, i.hostMAC()),
			func() error { return netlink.LinkSetHardwareAddr(link, i.hostMAC()) },
		},
		remedy{"MTU", attrs.MTU == i.MTU, func() error { return netlink.LinkSetMTU(link, i.MTU) }},
		remedy{"alias", attrs.Alias == i.vm, func() error { return netlink.LinkSetAlias(link, i.vm) }},
		remedy{
			"address", slices.ContainsFunc(addresses, func(a netlink.Addr) bool { return a.IPNet.String() == own.String() }),
			func() error { return netlink.AddrAdd(link, &netlink.Addr{IPNet: own}) },
		},
		remedy{"up", attrs.Flags&net.FlagUp != 0, func() error { return netlink.LinkSetUp(link) }},
	)
	if mended, err = apply(i.Name, remedies); err != nil {
		return mended, err
	}
	for _, mend := range []func() ([]string, error){
		func() ([]string, error) { return i.mendRoute(own) },
		i.mendNeighbour,
	} {
		more, err := mend()
		mended = append(mended, more...)
		if err != nil {
			return mended, err
		}
	}
	return mended, nil
}

// mendNeighbour sees to the guest's hardware address, which is known. The guest need not
// be asked, which it could not answer while it is paused, and cannot say anything else.
func (i *Interface) mendNeighbour() ([]string, error) {
	found, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(i.Index, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list neighbours of %s: %w", i.Name, err)
	}
	wanted := &netlink.Neigh{
		LinkIndex: i.Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
		IP: i.GuestAddr.AsSlice(), HardwareAddr: i.GuestMAC,
	}
	good := slices.ContainsFunc(found, func(n netlink.Neigh) bool {
		return n.IP.Equal(wanted.IP) && n.State == wanted.State && bytes.Equal(n.HardwareAddr, wanted.HardwareAddr)
	})
	return apply(i.Name, []remedy{{"neighbour", good, func() error { return netlink.NeighSet(wanted) }}})
}

// mendRoute sees to the route to the guest, which the kernel makes with the address
// but does not keep.
func (i *Interface) mendRoute(own *net.IPNet) ([]string, error) {
	wanted := &netlink.Route{
		LinkIndex: i.Index, Dst: &net.IPNet{IP: own.IP.Mask(own.Mask), Mask: own.Mask}, Src: own.IP,
		Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_KERNEL, Table: unix.RT_TABLE_MAIN,
	}
	found, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, wanted, netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes of %s: %w", i.Name, err)
	}
	return apply(i.Name, []remedy{{"route", len(found) > 0, func() error { return netlink.RouteReplace(wanted) }}})
}

// holds tells whether a setting is as it should be. One that this kernel cannot
// have is.
func (s setting) holds() (bool, error) {
	value, err := readSetting(s.path)
	if s.isIPv6() && errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return value == s.value, err
}
