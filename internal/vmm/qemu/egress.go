package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/logfile"
)

// QEMU's user-mode network connects the guest to whatever QEMU can connect to,
// the services on the host's loopback included. So it runs in a network
// namespace that has nothing but a way out:
//
//	guest -- QEMU's user-mode network -- namespace -- slirp4netns -- host's network
//
// The loopback that the guest reaches is the namespace's own, where nobody
// listens. slirp4netns does not connect to the host's either. Routes in the
// namespace, which no one in it may change, stop what else promise 2 forbids.

// The addresses of both stretches are from the range for benchmarks beside
// that of the TAPs, where no real network is.
var (
	userNetwork = netip.MustParsePrefix("198.19.0.0/24") // guest to QEMU
	userGateway = netip.MustParseAddr("198.19.0.2")
	userProxy   = netip.MustParseAddr("198.19.0.3") // QEMU's DNS proxy: not used
	userGuest   = netip.MustParseAddr("198.19.0.15")

	egressNetwork    = netip.MustParsePrefix("198.19.1.0/24") // QEMU to slirp4netns
	egressNameserver = netip.MustParseAddr("198.19.1.3")      // the host's, by proxy

	// forbidden are link-local addresses, of which one serves the cloud's
	// secrets, and those of other VMs.
	forbidden = []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("198.18.0.0/16")}
)

const egressTimeout = 5 * time.Second

// UserNetwork returns how a guest with vmm.NetworkUser has to configure its interface.
func UserNetwork() guestapi.Network {
	return guestapi.Network{
		Address:     netip.PrefixFrom(userGuest, userNetwork.Bits()),
		Gateway:     userGateway,
		Nameservers: []netip.Addr{egressNameserver},
	}
}

// egress is a network namespace with a way out.
type egress struct {
	log           *slog.Logger
	user, network *os.File // the namespaces
	slirp         *process
	stderr        *note    // of slirp
	exit          *os.File // slirp ends when nobody has it open: this process, then QEMU
}

// newEgress makes the namespace. It needs no privilege, but a kernel that lets
// users make namespaces, and programs.
func newEgress(ctx context.Context, block []netip.Prefix, log *slog.Logger) (_ *egress, err error) {
	ctx, cancel := context.WithTimeout(ctx, egressTimeout)
	defer cancel()
	slirp, err := find("slirp4netns", "slirp4netns")
	if err != nil {
		return nil, err
	}
	if _, err := find("nsenter", "util-linux"); err != nil {
		return nil, err
	}
	if err := unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK); err != nil {
		return nil, fmt.Errorf("use /dev/net/tun: %w", err)
	}
	addresses, err := hostAddresses()
	if err != nil {
		return nil, err
	}
	e := &egress{log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	if err := e.makeNamespaces(ctx, slices.Concat(forbidden, addresses, block)); err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	if err := e.connect(ctx, slirp); err != nil {
		return nil, fmt.Errorf("connect network namespace: %w", err)
	}
	return e, nil
}

// makeNamespaces starts ip in new namespaces, with the one capability that it
// needs there, and has it make what must not be reached unreachable.
func (e *egress) makeNamespaces(ctx context.Context, unreachable []netip.Prefix) (err error) {
	ip, err := find("ip", "iproute2")
	if err != nil {
		return err
	}
	script, input, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer script.Close() //nolint:errcheck // only read from
	var output logfile.Tail
	cmd := exec.Command(ip, "-batch", "-")
	cmd.Env, cmd.Dir = childEnvironment(), "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = script, &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{AmbientCaps: []uintptr{unix.CAP_NET_ADMIN}}
	isolate(cmd.SysProcAttr)
	child, err := startProcess(cmd, false)
	if err != nil {
		return errors.Join(err, input.Close())
	}
	// The namespaces outlive ip as open files. It lives until its input ends.
	e.user, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", child.id))
	if err == nil {
		e.network, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", child.id))
	}
	if err == nil {
		_, err = input.WriteString(routes(unreachable))
	}
	err = errors.Join(err, input.Close())
	select {
	case <-child.done:
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err(), child.kill())
		return err
	}
	if child.err != nil {
		err = errors.Join(err, fmt.Errorf("ip: %w: %s", child.err, output.LastLines(3)))
	}
	return err
}

// routes returns what ip is told.
func routes(unreachable []netip.Prefix) string {
	var b strings.Builder
	b.WriteString("link set dev lo up\n")
	slices.SortFunc(unreachable, netip.Prefix.Compare)
	for _, p := range slices.Compact(unreachable) {
		if p.Addr().Is4() {
			fmt.Fprintf(&b, "route add unreachable %s\n", p.Masked())
		}
	}
	return b.String()
}

// connect starts slirp4netns and waits until the way out is open.
func (e *egress) connect(ctx context.Context, program string) (err error) {
	ready, readyChild, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer ready.Close()      //nolint:errcheck // only read from
	defer readyChild.Close() //nolint:errcheck // never written to here
	exitChild, exit, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	e.exit = exit
	defer exitChild.Close() //nolint:errcheck // never read from here
	if e.stderr, err = newNote(); err != nil {
		return err
	}
	var files inheritance
	cmd := exec.Command(program,
		"--configure", "--mtu=65520", "--cidr="+egressNetwork.String(),
		"--disable-host-loopback", "--enable-seccomp",
		fmt.Sprintf("--ready-fd=%d", files.add(readyChild)),
		fmt.Sprintf("--exit-fd=%d", files.add(exitChild)),
		fmt.Sprintf("--userns-path=/proc/self/fd/%d", files.add(e.user)),
		"--netns-type=path", fmt.Sprintf("/proc/self/fd/%d", files.add(e.network)), "egress0")
	cmd.ExtraFiles = files.files
	cmd.Env, cmd.Dir, cmd.Stderr = childEnvironment(), "/", e.stderr.file
	// It serves a QEMU that may outlive this process, and ends with it.
	if e.slirp, err = startProcess(cmd, true); err != nil {
		return err
	}
	if err := readyChild.Close(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if n, err := ready.Read(make([]byte, 1)); n == 1 {
		return nil
	} else if ctx.Err() != nil {
		return fmt.Errorf("wait for slirp4netns: %w", ctx.Err())
	} else if waitErr := e.slirp.wait(killTimeout); waitErr != nil {
		return errors.Join(err, waitErr)
	}
	return fmt.Errorf("slirp4netns: %w: %s", e.slirp.err, e.stderr.LastLines(3))
}

// enter makes cmd run in the namespaces, and slirp4netns until cmd ends. Its
// capabilities end where it begins.
func (e *egress) enter(cmd *exec.Cmd, files *inheritance) error {
	nsenter, err := find("nsenter", "util-linux")
	if err != nil {
		return err
	}
	cmd.Args = append([]string{nsenter, "--preserve-credentials",
		fmt.Sprintf("--user=/proc/self/fd/%d", files.add(e.user)),
		fmt.Sprintf("--net=/proc/self/fd/%d", files.add(e.network)), "--", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = nsenter
	files.add(e.exit)
	return nil
}

// entered tells that somebody is in the namespaces, who keeps them and slirp4netns
// from now on.
func (e *egress) entered() error {
	err := errors.Join(e.user.Close(), e.network.Close(), e.exit.Close())
	e.user, e.network, e.exit = nil, nil, nil
	return err
}

// watch tells the log if the way out closes before done is.
func (e *egress) watch(done <-chan struct{}) {
	select {
	case <-done:
		return
	case <-e.slirp.done:
	}
	select {
	case <-done:
	default:
		e.log.Warn("guest has no way out any more: slirp4netns ended",
			"error", e.slirp.err, "output", e.stderr.LastLines(3))
	}
}

// close removes the namespace, once QEMU is gone from it.
func (e *egress) close() error {
	var errs []error
	for _, f := range []*os.File{e.user, e.network, e.exit} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if e.slirp != nil {
		errs = append(errs, e.slirp.kill())
	}
	if e.stderr != nil {
		errs = append(errs, e.stderr.file.Close())
	}
	return errors.Join(errs...)
}

// hostAddresses returns the host's own IPv4 addresses, but for loopback.
func hostAddresses() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list host's addresses: %w", err)
	}
	var prefixes []netip.Prefix
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || !p.Addr().Is4() || p.Addr().IsLoopback() {
			continue
		}
		prefixes = append(prefixes, netip.PrefixFrom(p.Addr(), 32))
	}
	return prefixes, nil
}

// childEnvironment is all that our children need to know of ours: where
// programs are, and that their messages are to be in English.
func childEnvironment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
}
