package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// closeTimeout bounds how long Close waits for other processes.
const closeTimeout = 10 * time.Second

// Attachment says how a VM is to be connected.
type Attachment struct {
	VM     string // becomes the interface's alias
	Egress bool   // may the guest reach what the host reaches?
	MTU    int    // 0: 1500
}

// Interface is a VM's connection to the host: a TAP with its two addresses. It
// lasts until Close, or until its file and all duplicates are closed, whichever
// comes first: a monitor that got a duplicate keeps it alive when the
// owner dies.
type Interface struct {
	Name      string
	Index     int
	HostAddr  netip.Addr
	GuestAddr netip.Addr
	GuestMAC  net.HardwareAddr
	MTU       int

	host *Host
	file *os.File

	mu     sync.Mutex
	closed bool
}

// File is the TAP, for the VM's monitor. It has a virtio-net header before each
// frame. It belongs to the Interface: pass on a duplicate.
func (i *Interface) File() *os.File { return i.file }

// GuestPrefix is the guest's address as the guest should configure it.
func (i *Interface) GuestPrefix() netip.Prefix { return netip.PrefixFrom(i.GuestAddr, 31) }

// Attach makes a VM's interface, and with the first one the table, the route and the
// forwarding that all share. The guards stand before the interface does. On error
// nothing is left. The caller must Close the Interface.
func (h *Host) Attach(ctx context.Context, a Attachment) (*Interface, error) {
	var i *Interface
	err := h.locked(ctx, func(s *state) error {
		err := h.ensureFor(s, a.Egress)
		if err == nil {
			i, err = h.attach(a)
		}
		if err != nil {
			return errors.Join(err, h.reap(s))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("attach VM to network: %w", err)
	}
	h.log.Debug("attached VM to network", "vm", a.VM, "interface", i.Name, "guest", i.GuestAddr)
	return i, nil
}

// attach makes the interface proper.
func (h *Host) attach(a Attachment) (_ *Interface, err error) {
	i, err := h.openFree()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			i.file.Close() // and the interface is gone
		}
	}()
	// Addresses are used again. What is left of their last guest must not
	// become the new one's.
	if err := h.deleteForwardsTo(func(guest netip.Addr) bool { return guest == i.GuestAddr }); err != nil {
		return nil, err
	}
	if err := h.endFlows(guestFlows{i.GuestAddr}); err != nil {
		return nil, err
	}
	if err := writeSettings(tapSettings(i.Name, a.Egress)); err != nil {
		return nil, err
	}
	link, err := netlink.LinkByName(i.Name)
	if err != nil {
		return nil, fmt.Errorf("look up interface %s: %w", i.Name, err)
	}
	i.Index = link.Attrs().Index
	i.MTU = link.Attrs().MTU
	if a.MTU != 0 {
		i.MTU = a.MTU
	}
	group := 0
	if a.Egress {
		group = egressGroup
	}
	for _, step := range []func() error{
		func() error { return netlink.LinkSetMTU(link, i.MTU) },
		func() error { return netlink.LinkSetAlias(link, a.VM) },
		func() error { return netlink.LinkSetGroup(link, group) },
		func() error { return netlink.AddrAdd(link, &netlink.Addr{IPNet: prefix31(i.HostAddr)}) },
		func() error { return netlink.LinkSetUp(link) },
	} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("configure interface %s: %w", i.Name, err)
		}
	}
	return i, nil
}

// openFree makes a TAP whose addresses nothing on this host has.
func (h *Host) openFree() (*Interface, error) {
	var rejected []*os.File
	defer func() {
		for _, f := range rejected {
			f.Close()
		}
	}()
	used, err := h.usedAddresses()
	if err != nil {
		return nil, err
	}
	for {
		file, name, err := openTAP()
		if err != nil {
			return nil, err
		}
		n, ok := slotOf(name)
		if !ok {
			file.Close()
			return nil, fmt.Errorf("create TAP: the kernel named it %q", name)
		}
		host, guest, ok := n.addresses(h.pool)
		if !ok {
			file.Close()
			return nil, fmt.Errorf("no address is free in %s", h.pool)
		}
		if used[host] || used[guest] {
			rejected = append(rejected, file)
			continue
		}
		return &Interface{Name: name, HostAddr: host, GuestAddr: guest, GuestMAC: n.mac(), host: h, file: file}, nil
	}
}

// usedAddresses are the pool's addresses that interfaces of this host have.
func (h *Host) usedAddresses() (map[netip.Addr]bool, error) {
	all, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	used := make(map[netip.Addr]bool)
	for _, a := range all {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && h.pool.Contains(ip) {
			used[ip] = true
		}
	}
	return used, nil
}

// Close removes the interface, even if a monitor still has it open, with all that
// forwards to it; and with the last interface what all share. It is idempotent.
func (i *Interface) Close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := i.host.locked(ctx, func(s *state) error {
		err := netlink.LinkDel(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Index: i.Index}})
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete interface: %w", err)
		}
		if err := i.host.reap(s); err != nil {
			return err
		}
		return i.host.endFlows(guestFlows{i.GuestAddr})
	})
	if err != nil {
		return fmt.Errorf("detach VM from network: %w", err)
	}
	i.closed = true
	i.file.Close() // may be closed already, by a caller who has passed it on
	return nil
}
