package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

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
	// adopted tells that the tap was made by a former owner.
	adopted bool
	device  vmm.Network       // for the monitor
	guest   *guestapi.Network // for the guest; nil: it has no network
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
	c, err := connectTAP(tap, mode)
	if err != nil {
		return nil, errors.Join(err, tap.Close())
	}
	return c, nil
}

// connectTAP connects a VM to a TAP that exists.
func connectTAP(tap *network.Interface, mode NetworkMode) (*connection, error) {
	c := &connection{
		mode: NetworkNone, tap: tap,
		device: vmm.Network{Mode: vmm.NetworkTAP, TAP: tap.File(), MAC: tap.GuestMAC},
		guest:  &guestapi.Network{Address: tap.GuestPrefix(), MAC: tap.GuestMAC, Gateway: tap.HostAddr},
	}
	if mode == NetworkNone {
		return c, nil
	}
	resolver, err := network.Nameservers()
	if err != nil {
		return nil, err
	}
	c.mode = NetworkNAT
	c.guest.Nameservers, c.guest.Search = resolver.Nameservers, resolver.Search
	return c, nil
}

// reconnect makes the connection anew of a VM that lives on without its owner.
func (h *Host) reconnect(ctx context.Context, rec store.Record) (*connection, error) {
	mode, reason := NetworkMode(rec.Run.Network), rec.Run.NetworkReason
	i := rec.Run.Interface
	switch {
	case i != nil:
		tap, err := h.network.Adopt(ctx, i.Name, i.Index, network.Attachment{VM: rec.Name, Egress: mode != NetworkNone})
		if err != nil {
			return nil, err
		}
		c, err := connectTAP(tap, mode)
		if err != nil {
			return nil, errors.Join(err, tap.Close())
		}
		c.adopted = true
		return c, nil
	case mode == NetworkUser:
		return connectUser(reason, cmp.Or(h.network.Capable(), errNoTAP)), nil
	}
	return &connection{
		mode: mode, reason: reason, noTAP: cmp.Or(h.network.Capable(), errNoTAP), device: vmm.Network{Mode: vmm.NetworkNone},
	}, nil
}

// forgetOthers ends the forwards to the guest that are not among those given.
func (c *connection) forgetOthers(ctx context.Context, known []forward.Pair) error {
	if c.tap == nil {
		return nil
	}
	return c.tap.ForgetForwards(ctx, func(m forward.Mapping) bool {
		return !slices.Contains(known, forward.Pair{
			Protocol: m.Protocol, HostPort: int(m.HostPort), GuestPort: int(m.Guest.Port()),
		})
	})
}

// info describes the connection.
func (c *connection) info() NetworkInfo {
	info := NetworkInfo{Mode: c.mode, Reason: c.reason}
	if c.tap != nil {
		info.Interface = c.tap.Name
	}
	return info
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
	cfg := forward.Config{
		VM: vm, Log: log, Tunnel: tunnel, Guest: c.address(), TableUnavailable: c.noTAP, Adopted: c.adopted,
	}
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
