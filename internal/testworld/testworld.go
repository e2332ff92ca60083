// Package testworld gives tests and benchmarks that run whole VMs a network of their own: a
// network namespace that plays the host, and a second one that plays its neighbour
// on the network. No packet and no rule of theirs reaches the machine's own.
package testworld

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	insideEnv   = "SMOLVM_TEST_INSIDE" // set in the process that is inside the namespace
	imagesEnv   = "SMOLVM_TEST_IMAGES" // the image store that make test filled
	outsideFile = 3                    // where that process finds the machine's own network namespace
)

// The addresses of the host and its one neighbour, which is its gateway and name
// server too.
const (
	HostAddress      = "203.0.113.2"
	NeighbourAddress = "203.0.113.1"
)

// Scratch is a directory in memory that is gone after the tests. Every user may
// pass through it.
const Scratch = "/mnt"

// World is where the tests take place.
type World struct {
	Neighbour   netns.NsHandle
	Outside     netns.NsHandle // the machine's own network
	Nameservers []string       // those of the machine's own network
}

// Main runs this program again in a new world, and there run. It returns the exit
// code of run: for TestMain, and for the main function of a benchmark.
func Main(run func(*World) int) (exitCode int) {
	if os.Getenv(insideEnv) == "" {
		return runInside()
	}
	w, err := newWorld()
	if err != nil {
		fmt.Fprintln(os.Stderr, "make the world of the tests:", err)
		return 1
	}
	return run(w)
}

// runInside runs this program again in network and mount namespaces of its own.
func runInside() int {
	if os.Geteuid() != 0 || os.Getenv(imagesEnv) == "" {
		fmt.Fprintf(os.Stderr, "tests with VMs need root, and %s: run them by make test\n", imagesEnv)
		return 1
	}
	outside, err := os.Open("/proc/self/ns/net")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{outside}
	runtime.LockOSThread() // the thread that starts the child must outlive it
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

func newWorld() (*World, error) {
	unix.CloseOnExec(outsideFile)
	w := &World{Outside: netns.NsHandle(outsideFile)}
	return w, errors.Join(w.mount(), w.connect())
}

// mount gives the tests the images as root's own, and their own name server.
func (w *World) mount() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	images := os.Getenv(imagesEnv)
	const system = "/var/lib/smolvm/images"
	if images != system {
		if err := os.MkdirAll(system, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(images, system, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount images: %w", err)
		}
	}
	if err := unix.Mount("tmpfs", Scratch, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount scratch space: %w", err)
	}
	resolv := Scratch + "/resolv.conf"
	if err := os.WriteFile(resolv, []byte("nameserver "+NeighbourAddress+"\n"), 0o644); err != nil {
		return err
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return err
	}
	own, err := os.ReadFile(target)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(own)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" {
			w.Nameservers = append(w.Nameservers, f[1])
		}
	}
	if err := unix.Mount(resolv, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount resolv.conf: %w", err)
	}
	return nil
}

// connect makes the second host and the cable to it.
func (w *World) connect() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		return err
	}
	w.Neighbour, err = netns.New() // and enters it
	if err != nil {
		return err
	}
	if err := netns.Set(own); err != nil {
		return err
	}
	there, err := netlink.NewHandleAt(w.Neighbour)
	if err != nil {
		return err
	}
	defer there.Close()
	here, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer here.Close()
	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "cable"}
	if err := here.LinkAdd(cable); err != nil {
		return fmt.Errorf("make cable: %w", err)
	}
	end, err := here.LinkByName("cable")
	if err != nil {
		return err
	}
	if err := here.LinkSetNsFd(end, int(w.Neighbour)); err != nil {
		return err
	}
	if err := configure(here, "uplink", HostAddress); err != nil {
		return err
	}
	if err := configure(there, "cable", NeighbourAddress); err != nil {
		return err
	}
	link, err := here.LinkByName("uplink")
	if err != nil {
		return err
	}
	gateway, _ := netlink.ParseIPNet(NeighbourAddress + "/32")
	return here.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.IP})
}

// configure brings up lo and one link with an address.
func configure(h *netlink.Handle, name, address string) error {
	for _, l := range []string{"lo", name} {
		link, err := h.LinkByName(l)
		if err != nil {
			return err
		}
		if l == name {
			addr, err := netlink.ParseAddr(address + "/24")
			if err != nil {
				return err
			}
			if err := h.AddrAdd(link, addr); err != nil {
				return err
			}
		}
		if err := h.LinkSetUp(link); err != nil {
			return err
		}
	}
	return nil
}

// In runs f with the calling thread in another network namespace.
func In(ns netns.NsHandle, f func()) error {
	done := make(chan error)
	go func() {
		// The thread is not unlocked: it ends with the goroutine, so that no other
		// can find itself in the wrong namespace.
		runtime.LockOSThread()
		err := netns.Set(ns)
		if err == nil {
			f()
		}
		done <- err
	}()
	return <-done
}
