package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/guestlink"
	"github.com/smolvm/smolvm/internal/guestlink/linktest"
	"github.com/smolvm/smolvm/internal/network"
	"github.com/smolvm/smolvm/internal/network/nettest"
	"github.com/smolvm/smolvm/internal/testworld"
)

// The cable to the guest that is no VM. Its name is one that SmolVM's rules are
// about, and its addresses are a VM's.
const (
	cable        = "smol0"
	hostAddress  = "198.18.0.0"
	guestAddress = "198.18.0.1"
)

// world is a guest without a VM, that is a network namespace at the end of a virtual
// cable, and all the ways to its services.
type world struct {
	guest    netip.Addr
	space    *nettest.Namespace // the guest's network
	host     *place             // here
	inGuest  *place
	services *program
	client   *client
	tools    tools
	dir      string
	runtime  string // directory of the network
	table    forward.Table
	manager  *forward.Manager

	closers // end all processes and take the network down
}

// newWorld makes a world. The caller owes a Close.
func newWorld(ctx context.Context, set settings) (_ *world, err error) {
	w := &world{guest: netip.MustParseAddr(guestAddress), tools: tools{set.peers}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if w.dir, err = os.MkdirTemp(testworld.Scratch, "forward"); err != nil {
		return nil, err
	}
	w.add(func() error { return os.RemoveAll(w.dir) })
	if err := w.layCable(); err != nil {
		return nil, err
	}
	if err := w.populate(); err != nil {
		return nil, err
	}
	return w, w.manage(ctx)
}

// layCable makes the guest's network.
func (w *world) layCable() error {
	var err error
	if w.space, err = nettest.Make(); err != nil {
		return err
	}
	w.add(func() error {
		return netlink.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: cable}})
	})
	if err := w.space.Connect(cable, hostAddress+"/31", guestAddress+"/31", false); err != nil {
		return err
	}
	return nettest.Set("ipv4/conf/"+cable+"/route_localnet", "1")
}

// populate starts what runs at both ends of the cable.
func (w *world) populate() error {
	w.host, w.inGuest = newPlace(nil), newPlace(w.space)
	w.add(w.host.close)
	w.add(w.inGuest.close)
	var err error
	if w.services, err = w.inGuest.startReady(asRole(roleServices)); err != nil {
		return err
	}
	w.add(w.services.stop)
	if err := w.startSSHServer(); err != nil {
		return err
	}
	if w.client, err = startClient(w.host); err != nil {
		return err
	}
	w.add(w.client.stop)
	return nil
}

// manage makes the manager of the guest's forwards, as a VM's owner does: with a
// table, and with a tunnel to the real guest server.
func (w *world) manage(ctx context.Context) error {
	server, err := linktest.Start(w.space)
	if err != nil {
		return err
	}
	w.add(server.Close)
	port, err := server.Dial(ctx)
	if err != nil {
		return fmt.Errorf("connect to guest server: %w", err)
	}
	link, err := guestlink.Dial(ctx, port, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	w.add(link.Close)
	w.runtime = filepath.Join(w.dir, "run")
	host := network.NewHost(network.Options{RuntimeDir: w.runtime})
	w.add(func() error { return errors.Join(host.Reap(context.WithoutCancel(ctx)), host.Close()) })
	w.table = host.Table()
	w.manager = newManager(w.table, tunnel{link})
	w.add(w.manager.Close)
	return w.manager.Prove(ctx)
}

// tunnel is the way through the guest channel.
type tunnel struct{ link *guestlink.Link }

// DialStream implements forward.Dialer.
func (t tunnel) DialStream(ctx context.Context, guestPort uint16) (forward.Conn, error) {
	conn, err := t.link.DialContext(ctx, "tcp", local(guestPort))
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// DialDatagrams implements forward.Dialer.
func (t tunnel) DialDatagrams(ctx context.Context, guestPort uint16) (net.Conn, error) {
	return t.link.DialDatagrams(ctx, local(guestPort))
}

func local(port uint16) string { return net.JoinHostPort("localhost", strconv.Itoa(int(port))) }

// expose makes a guest port answer on a host port.
func expose(ctx context.Context, m *forward.Manager, r forward.Request) (forward.Forward, error) {
	r.HostPortSet, r.Strict = r.HostPort != 0, r.HostPort != 0
	return m.Expose(ctx, r)
}
