package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// configureNetwork makes the guest's Ethernet interface, nil if it has none, be as n says,
// whatever it was before. A nil n takes its addresses and sets it down. One that is bare has no
// addresses.
func configureNetwork(link *net.Interface, n *guestapi.Network, bare bool) error {
	switch {
	case link == nil && n == nil:
		return nil
	case link == nil:
		return errors.New("configure network: the guest has no Ethernet interface")
	}
	r, err := openRTNetlink()
	if err != nil {
		return err
	}
	defer r.close()
	if n == nil {
		return errors.Join(dropAddresses(r, link, netip.Prefix{}), r.setUp(link.Index, false))
	}
	if !n.Address.IsValid() || !n.Gateway.IsValid() {
		return errors.New("configure network: address or gateway is missing")
	}
	if len(n.MAC) > 0 && !bytes.Equal(n.MAC, link.HardwareAddr) {
		if err := r.setMAC(link.Index, n.MAC); err != nil {
			return err
		}
	}
	if err := r.setUp(link.Index, true); err != nil {
		return err
	}
	if !bare {
		if err := dropAddresses(r, link, n.Address); err != nil {
			return err
		}
	}
	if err := r.addAddress(link.Index, n.Address); err != nil {
		return err
	}
	return r.setDefaultRoute(link.Index, n.Gateway)
}

// dropAddresses takes all addresses from the interface but keep and those that
// the kernel itself has given it.
func dropAddresses(r *rtnetlink, link *net.Interface, keep netip.Prefix) error {
	addrs, err := link.Addrs()
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	var errs []error
	for _, a := range addrs {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil || prefix == keep || prefix.Addr().IsLinkLocalUnicast() && prefix.Addr().Is6() {
			continue
		}
		errs = append(errs, r.deleteAddress(link.Index, prefix))
	}
	return errors.Join(errs...)
}

// ethernet returns the guest's first Ethernet interface, nil if it has none.
func ethernet() (*net.Interface, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	for _, l := range links {
		if l.Flags&net.FlagLoopback == 0 && len(l.HardwareAddr) == 6 {
			return &l, nil
		}
	}
	return nil, nil
}

// bareEthernet takes all addresses and routes from the guest's Ethernet interface, nil if it has
// none, and leaves it up: that is most of what makes it work.
func bareEthernet() (*net.Interface, error) {
	link, err := ethernet()
	if err != nil || link == nil {
		return nil, err
	}
	if err := configureNetwork(link, nil, false); err != nil {
		return nil, err
	}
	r, err := openRTNetlink()
	if err != nil {
		return nil, err
	}
	defer r.close()
	return link, r.setUp(link.Index, true)
}

// withoutIPv6 keeps IPv6 off the Ethernet interface, if there is one: the host lets none of it through.
// Each copy of the guest would look for addresses, routers and groups there. Who has a use for it
// may turn it on again.
func withoutIPv6() error {
	link, err := ethernet()
	if err != nil || link == nil {
		return err
	}
	err = os.WriteFile("/proc/sys/net/ipv6/conf/"+link.Name+"/disable_ipv6", []byte("1"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without it
		return fmt.Errorf("turn off IPv6: %w", err)
	}
	return nil
}

// loopbackUp sets lo up; the kernel gives it its addresses.
func loopbackUp() error {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	r, err := openRTNetlink()
	if err != nil {
		return err
	}
	defer r.close()
	return r.setUp(lo.Index, true)
}
