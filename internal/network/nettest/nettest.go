// Package nettest gives tests networks of their own: the test program runs in a
// new network namespace, and guests and neighbours are further ones. Nothing
// reaches the machine's real network.
package nettest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideVariable marks the copy of the test program that runs in its own namespace.
const insideVariable = "SMOLVM_NETTEST_INSIDE"

// outsideFile is where that copy finds the machine's real network namespace.
const outsideFile = 3

// Main runs a package's tests in a network namespace of their own. It is called
// from TestMain with what runs the tests, and exits the program.
func Main(run func() int) {
	if os.Getenv(insideVariable) == "" {
		os.Exit(reexec())
	}
	unix.CloseOnExec(outsideFile)
	if err := up("lo"); err != nil {
		fmt.Fprintln(os.Stderr, "nettest: bring up loopback:", err)
		os.Exit(1)
	}
	os.Exit(run())
}

// Outside is the machine's real network namespace. Only the package managers'
// downloads may go there.
func Outside() *Namespace { return &Namespace{fd: outsideFile} }

// reexec runs this program again in new namespaces. Without root it takes a user
// namespace, in which the tests have the rights they need.
func reexec() int {
	outside, err := os.Open("/proc/self/ns/net")
	if err != nil {
		fmt.Fprintln(os.Stderr, "nettest:", err)
		return 1
	}
	runtime.LockOSThread() // the parent-death signal is the thread's
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{outside} // becomes outsideFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "nettest: run in a network namespace:", err)
	return 1
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// Namespace is a network namespace beside the test's own.
type Namespace struct {
	t  testing.TB // nil: only what returns errors may be used
	fd int
}

// New makes a namespace that lasts as long as the test. Its loopback interface is up.
func New(t testing.TB) *Namespace {
	t.Helper()
	n, err := Make()
	if err != nil {
		t.Fatal(err)
	}
	n.t = t
	t.Cleanup(func() { unix.Close(n.fd) })
	return n
}

// Make makes a namespace that lasts as long as the process. Its loopback interface
// is up.
func Make() (*Namespace, error) {
	n := &Namespace{fd: -1}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		n.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return up("lo")
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	return n, nil
}

// onThread runs f on an OS thread that is thrown away, so that f may change it.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		result <- f()
	}()
	return <-result
}

// Try runs f in the namespace. Sockets that f opens stay in it.
func (n *Namespace) Try(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// Do is Try for what must succeed.
func (n *Namespace) Do(f func() error) {
	n.t.Helper()
	if err := n.Try(f); err != nil {
		n.t.Fatal(err)
	}
}

// Dial connects from within the namespace to a literal address.
func (n *Namespace) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := n.Try(func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens within the namespace until the test ends.
func (n *Namespace) Listen(address string) *net.TCPListener {
	n.t.Helper()
	var l net.Listener
	n.Do(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	n.t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// Sysctl sets a kernel setting of the namespace, named by its path below /proc/sys/net.
func (n *Namespace) Sysctl(key, value string) {
	n.t.Helper()
	n.Do(func() error { return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0) })
}

// Run runs a program within the namespace and returns its output.
func (n *Namespace) Run(name string, args ...string) string {
	n.t.Helper()
	var out []byte
	n.Do(func() (err error) {
		out, err = exec.Command(name, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %q: %w: %s", name, args, err, out)
		}
		return nil
	})
	return string(out)
}

// Neighbour makes a namespace on a LAN with the test's own, as Connect does, for as
// long as the test.
func Neighbour(t testing.TB, name, ownAddr, neighbourAddr string, defaultRoute bool) *Namespace {
	t.Helper()
	n := New(t)
	t.Cleanup(func() { _ = netlink.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}}) })
	must(t, n.Connect(name, ownAddr, neighbourAddr, defaultRoute))
	return n
}

// Connect lays a LAN between the namespace and the process's own: the namespace's
// interface is "eth0", the other side is called name. The addresses are in CIDR
// notation; a default route leads to the namespace.
func (n *Namespace) Connect(name, ownAddr, neighbourAddr string, defaultRoute bool) error {
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(n.fd)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("lay cable: %w", err)
	}
	if err := configure(name, ownAddr); err != nil {
		return fmt.Errorf("configure %s: %w", name, err)
	}
	if err := n.Try(func() error { return configure("eth0", neighbourAddr) }); err != nil {
		return fmt.Errorf("configure neighbour: %w", err)
	}
	if !defaultRoute {
		return nil
	}
	ip, _, err := net.ParseCIDR(neighbourAddr)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Gw: ip})
}

func configure(name, cidr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Set changes a kernel setting of the tests' own namespace, named by its path below
// /proc/sys/net.
func Set(key, value string) error { return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0) }
