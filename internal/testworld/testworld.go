// Package testworld gives tests and benchmarks that run whole VMs a network of their
// own: a network namespace that plays the host, and a second one that plays its
// neighbour on the network. No packet and no rule of theirs reaches the machine's own.
package testworld

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/network/nettest"
	"github.com/smolvm/smolvm/internal/store"
)

// images is the image store that make test filled.
func images() string { return cmp.Or(os.Getenv("SMOLVM_TEST_IMAGES"), store.SystemImages()) }

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
	Neighbour   *nettest.Namespace
	Outside     *nettest.Namespace // the machine's own network
	Nameservers []string           // those of the machine's own network
}

// Main runs this program again in a new world, and there run. It exits with the exit
// code of run. It is for TestMain, and for the main function of a benchmark.
func Main(run func(*World) int) {
	if _, err := os.Stat(images() + "/debian/current"); err != nil || os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "tests with VMs need root, and an image: run them by make test")
		os.Exit(1)
	}
	nettest.Main(func() int {
		w, err := newWorld()
		if err != nil {
			fmt.Fprintln(os.Stderr, "make the world of the tests:", err)
			return 1
		}
		return run(w)
	})
}

func newWorld() (*World, error) {
	neighbour, err := nettest.Make()
	if err != nil {
		return nil, err
	}
	w := &World{Neighbour: neighbour, Outside: nettest.Outside()}
	return w, errors.Join(
		neighbour.Connect("uplink", HostAddress+"/24", NeighbourAddress+"/24", true),
		// The kernel takes seconds over an IPv6 address, and tests compare addresses.
		nettest.Set("ipv6/conf/uplink/disable_ipv6", "1"),
		mountImages(),
		w.mountNameserver(),
	)
}

// mountImages gives the tests the images as root's own.
func mountImages() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if system := store.SystemImages(); images() != system {
		if err := os.MkdirAll(system, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(images(), system, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount images: %w", err)
		}
	}
	if err := unix.Mount("tmpfs", Scratch, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount scratch space: %w", err)
	}
	return nil
}

// mountNameserver makes the neighbour the host's name server, and keeps who it was.
func (w *World) mountNameserver() error {
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
	resolv := Scratch + "/resolv.conf"
	if err := os.WriteFile(resolv, []byte("nameserver "+NeighbourAddress+"\n"), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(resolv, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount resolv.conf: %w", err)
	}
	return nil
}
