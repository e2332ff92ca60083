package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/network"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/vmm"
	"github.com/smolvm/smolvm/internal/vmm/qemu"
)

// connection is how one run of a VM is connected to the network.
type connection struct {
	mode   NetworkMode
	reason string             // why it is not what it could be
	tap    *network.Interface // nil: the host cannot reach the guest by address
	noTAP  error              // why tap is nil
	device vmm.Network        // for the monitor
	guest  *guestapi.Network  // for the guest; nil: it has no network
}

// errNoTAP is why there is no TAP where there could be one.
var errNoTAP = errors.New("the VM has no address that the host can reach")

// connect makes the connection of a VM. The caller must Close it.
func (h *Host) connect(ctx context.Context, vm string, mode NetworkMode, log *slog.Logger) (*connection, error) {
	incapable := h.network.Capable()
	switch {
	case mode == NetworkNAT && incapable != nil:
		return nil, fmt.Errorf("network %s: %w", NetworkNAT, incapable)
	case mode == NetworkUser:
		return connectUser("asked for", cmp.Or(incapable, errNoTAP)), nil
	case incapable == nil:
		return h.attach(ctx, vm, mode)
	case mode == NetworkNone:
		return &connection{mode: NetworkNone, reason: incapable.Error(), noTAP: incapable, device: vmm.Network{Mode: vmm.NetworkNone}}, nil
	}
	log.Info("the VM gets a user-mode network", "reason", incapable)
	return connectUser(incapable.Error(), incapable), nil
}

// connectUser connects a VM to the monitor's user-mode network.
func connectUser(reason string, noTAP error) *connection {
	guest := qemu.UserNetwork()
	return &connection{
		mode: NetworkUser, reason: reason, noTAP: noTAP, device: vmm.Network{Mode: vmm.NetworkUser}, guest: &guest,
	}
}

// attach connects a VM through a TAP. With NetworkNone it is only the host that can
// reach the guest.
func (h *Host) attach(ctx context.Context, vm string, mode NetworkMode) (*connection, error) {
	egress := mode != NetworkNone
	tap, err := h.network.Attach(ctx, network.Attachment{VM: vm, Egress: egress})
	if err != nil {
		return nil, err
	}
	c := &connection{
		mode: NetworkNone, tap: tap,
		device: vmm.Network{Mode: vmm.NetworkTAP, TAP: tap.File(), MAC: tap.GuestMAC},
		guest:  &guestapi.Network{Address: tap.GuestPrefix(), Gateway: tap.HostAddr},
	}
	if egress {
		resolver, err := network.Nameservers()
		if err != nil {
			return nil, errors.Join(err, tap.Close())
		}
		c.mode = NetworkNAT
		c.guest.Nameservers, c.guest.Search = resolver.Nameservers, resolver.Search
	}
	return c, nil
}

// address is the guest's, if the host can reach it.
func (c *connection) address() netip.Addr {
	if c.tap == nil {
		return netip.Addr{}
	}
	return c.tap.GuestAddr
}

// hostInterface is the host's end of the connection, if that is an interface.
func (c *connection) hostInterface() *store.Interface {
	if c.tap == nil {
		return nil
	}
	return &store.Interface{Name: c.tap.Name, Index: c.tap.Index}
}

// forwards returns the manager of the VM's forwards.
func (h *Host) forwards(c *connection, vm string, log *slog.Logger, tunnel forward.Dialer) *forward.Manager {
	cfg := forward.Config{VM: vm, Log: log, Tunnel: tunnel, Guest: c.address(), TableUnavailable: c.noTAP}
	if c.tap != nil {
		cfg.Table, cfg.Firewall = h.network.Table(), h.network.Firewall()
	}
	return forward.NewManager(cfg)
}

// Close removes what connect made. It is idempotent.
func (c *connection) Close() error {
	if c.tap == nil {
		return nil
	}
	return c.tap.Close()
}
