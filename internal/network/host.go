// Package network connects VMs to the host: one TAP interface each, NAT for what
// they send out, and one nftables table with the forwards and the guards that
// keep guests away from the host and from each other. It speaks netlink and
// runs no program.
//
// All processes of the host share the table, the pool route and the kernel's
// forwarding switches. What they have in common is changed under one lock in the
// runtime directory, except single forwards, which are one element each and need none.
package network

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// DefaultRuntimeDir is where the state of the host's network is kept. It must
// not outlive a reboot.
const DefaultRuntimeDir = "/run/smolvm"

// DefaultPool is the range that addresses of VMs come from: a part of what is set
// aside for measuring networks, which nobody's network uses.
func DefaultPool() netip.Prefix { return netip.MustParsePrefix("198.18.0.0/16") }

// Options are what a Host works with. The zero Options are the defaults.
type Options struct {
	// RuntimeDir and Pool must be the same for all processes of a network namespace.
	RuntimeDir string       // default: DefaultRuntimeDir
	Pool       netip.Prefix // default: DefaultPool; IPv4, at most /30
	Log        *slog.Logger // nil: silence
}

// Host is the network of this host, or of the network namespace that the process
// runs in. Its methods may be called concurrently, by any number of processes.
type Host struct {
	dir  string
	pool netip.Prefix
	log  *slog.Logger

	sockets     sockets
	wanted      wanted
	reconciler  reconciler
	flusher     flusher
	cannotFlush atomic.Bool // the kernel cannot look for connections by itself
}

// NewHost returns the Host. It changes nothing yet.
func NewHost(opts Options) *Host {
	if opts.RuntimeDir == "" {
		opts.RuntimeDir = DefaultRuntimeDir
	}
	if opts.Pool == (netip.Prefix{}) {
		opts.Pool = DefaultPool()
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Host{dir: opts.RuntimeDir, pool: opts.Pool.Masked(), log: opts.Log}
}

// Capable returns nil if this process may connect VMs to the host's network,
// else what is missing.
func (h *Host) Capable() error {
	if !h.pool.IsValid() || !h.pool.Addr().Is4() || h.pool.Bits() > 30 {
		return fmt.Errorf("address pool %v is not an IPv4 range of at least four addresses", h.pool)
	}
	if err := haveNetAdmin(); err != nil {
		return err
	}
	tun, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("no TAP interfaces: %w", err)
	}
	tun.Close()
	if err := unix.Access(ipv4Conf("all", "forwarding"), unix.W_OK); err != nil {
		return fmt.Errorf("kernel settings cannot be changed: %w", &os.PathError{Op: "write", Path: ipv4Conf("all", "forwarding"), Err: err})
	}
	err = h.sockets.change(func(conn *nftables.Conn) error {
		_, err := tables(conn)
		return err
	})
	if err != nil {
		return fmt.Errorf("nftables cannot be used: %w", err)
	}
	return nil
}

// haveNetAdmin tells whether this process has CAP_NET_ADMIN.
func haveNetAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if sets[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("no permission to configure the network: it takes root, or CAP_NET_ADMIN")
	}
	return nil
}

// StateDir is the runtime directory of this network namespace. It exists while VMs do.
func (h *Host) StateDir() (string, error) {
	space, err := namespace()
	if err != nil {
		return "", fmt.Errorf("identify network namespace: %w", err)
	}
	return filepath.Join(h.dir, "net-"+space), nil
}

// namespace identifies the network namespace that the thread is in, for as long as the host is up.
func namespace() (string, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written to it
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		// Before Linux 5.14 there is its inode only, which another one has after it.
		return os.Readlink("/proc/thread-self/ns/net")
	}
	return strconv.FormatUint(cookie, 10), os.NewSyscallError("getsockopt", err)
}
