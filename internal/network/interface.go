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
)

// closeTimeout bounds how long Close waits for other processes: a hundred VMs may go at once,
// on a host that has no time for it.
const closeTimeout = time.Minute

// Attachment says how a VM is to be connected.
type Attachment struct {
	VM     string // becomes the interface's alias
	Egress bool   // may the guest reach what the host reaches?
	MTU    int    // 0: 1500
}

// Interface is a VM's connection to the host: a TAP with its two addresses. It
// lasts until Close, or until its file and all duplicates are closed, whichever
// comes first: a monitor that got a duplicate keeps it alive when the
// owner dies. What others do to it and to all that it needs is mended within a second.
type Interface struct {
	Name      string
	Index     int
	HostAddr  netip.Addr
	GuestAddr netip.Addr
	GuestMAC  net.HardwareAddr
	MTU       int

	host    *Host
	file    *os.File // nil: adopted, only the monitor has it open
	vm      string
	egress  bool
	release func() // the reconciler

	mu     sync.Mutex
	closed bool
}

// File is the TAP, for the VM's monitor. It has a virtio-net header before each
// frame. It belongs to the Interface: pass on a duplicate. It is nil if the Interface was
// adopted.
func (i *Interface) File() *os.File { return i.file }

// hostMAC is the hardware address of the host's end.
func (i *Interface) hostMAC() net.HardwareAddr {
	n, _ := slotOf(i.Name)
	return n.hostMAC()
}

// GuestPrefix is the guest's address as the guest should configure it.
func (i *Interface) GuestPrefix() netip.Prefix { return netip.PrefixFrom(i.GuestAddr, 31) }

// Attach makes a VM's interface, and with the first one the table, the route and the
// forwarding that all share. The guards stand before the interface does. On error
// nothing is left. The caller must Close the Interface.
func (h *Host) Attach(ctx context.Context, a Attachment) (*Interface, error) {
	var i *Interface
	release, err := h.reconciler.begin(h)
	if err != nil {
		return nil, fmt.Errorf("attach VM to network: %w", err)
	}
	err = h.locked(ctx, func(s *state) error {
		err := h.ensureFor(s, a.Egress)
		if err == nil {
			i, err = h.attach(a)
		}
		if err != nil {
			_, reapErr := h.reap(s)
			return errors.Join(err, reapErr)
		}
		i.release = release
		h.reconciler.keep(i)
		return nil
	})
	if err != nil {
		release()
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
	if err := h.endFlows(guestFlows(i.GuestAddr)...); err != nil {
		return nil, err
	}
	link, err := netlink.LinkByName(i.Name)
	if err != nil {
		return nil, fmt.Errorf("look up interface %s: %w", i.Name, err)
	}
	i.Index, i.MTU, i.vm, i.egress = link.Attrs().Index, link.Attrs().MTU, a.VM, a.Egress
	if a.MTU != 0 {
		i.MTU = a.MTU
	}
	if _, err := i.mark(link); err != nil {
		return nil, err
	}
	if _, err := i.arrange(link); err != nil {
		return nil, err
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
	i.host.reconciler.forget(i)
	i.release()
	if err := i.host.detach(ctx, i.Name, i.Index, i.GuestAddr); err != nil {
		return fmt.Errorf("detach VM from network: %w", err)
	}
	i.closed = true
	if i.file != nil {
		i.file.Close() // may be closed already, by a caller who has passed it on
	}
	return nil
}
