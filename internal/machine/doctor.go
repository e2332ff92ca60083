package machine

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/diskusage"
	"github.com/smolvm/smolvm/internal/guestbin"
	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/network"
	"github.com/smolvm/smolvm/internal/vmm"
)

// Verdict is what came of a check.
type Verdict string

// The verdicts.
const (
	VerdictOK      Verdict = "ok"
	VerdictWarning Verdict = "warning" // VMs run, but slower or less safe than they could
	VerdictBroken  Verdict = "broken"  // VMs do not run
)

// Check is one thing that was found out about this host. The JSON names are a
// contract.
type Check struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	Detail  string  `json:"detail"`
	Advice  string  `json:"advice,omitempty"` // what to do about it
}

// Diagnose finds out what works here. It boots a guest if it must, to see whether KVM
// works.
func (h *Host) Diagnose(ctx context.Context) []Check {
	checks := []Check{
		h.checkQEMU(ctx),
		checkGuestProgram(),
		h.checkDataDir(),
		h.checkImage(),
		h.checkAccelerator(ctx),
		h.checkForwarding(),
		h.checkEgress(ctx),
		checkNameservers(),
	}
	return append(checks, h.checkFirewalls(ctx)...)
}

func (h *Host) checkQEMU(ctx context.Context) Check {
	version, err := h.driver.Version(ctx)
	if err != nil {
		return Check{"qemu", VerdictBroken, err.Error(), "install the Debian package qemu-system-x86"}
	}
	return Check{"qemu", VerdictOK, version, ""}
}

func checkGuestProgram() Check {
	program, err := guestbin.Program()
	if err != nil {
		return Check{"guest program", VerdictBroken, err.Error(), "run make build in the checkout of smolvm"}
	}
	return Check{"guest program", VerdictOK, fmt.Sprintf("%.1f MB", float64(program.Size())/1e6), ""}
}

// lowSpace is the free space, in bytes, below which an image or a few disks may
// not fit.
const lowSpace = 2 << 30

func (h *Host) checkDataDir() Check {
	const name = "data directory"
	root := h.store.Root()
	if err := unix.Access(root, unix.W_OK); err != nil {
		return Check{name, VerdictBroken, fmt.Sprintf("%s: %v", root, err), "choose another with SMOLVM_DATA_DIR or --data-dir"}
	}
	free, err := diskusage.Free(root)
	if err != nil {
		return Check{name, VerdictBroken, fmt.Sprintf("%s: %v", root, err), ""}
	}
	detail := fmt.Sprintf("%s, %.1f GB free", root, float64(free)/1e9)
	if free < lowSpace {
		return Check{name, VerdictWarning, detail, "free some space, or choose another directory with SMOLVM_DATA_DIR or --data-dir"}
	}
	return Check{name, VerdictOK, detail, ""}
}

func (h *Host) checkImage() Check {
	name := "image " + DefaultImage
	img, err := h.images.Get(DefaultImage)
	switch {
	case errors.Is(err, image.ErrNotFound):
		return Check{name, VerdictWarning, "it is not made yet: the first start makes it, in about half a minute", "smolvm pull"}
	case err != nil:
		return Check{name, VerdictBroken, err.Error(), ""}
	}
	usage, err := img.Usage()
	if err != nil {
		return Check{name, VerdictBroken, err.Error(), ""}
	}
	return Check{name, VerdictOK, fmt.Sprintf("%s, %d MB in %s", img.Description, usage.Bytes/1e6, img.Dir), ""}
}

func (h *Host) checkAccelerator(ctx context.Context) Check {
	const name = "accelerator"
	img, err := h.images.Get(DefaultImage)
	if err != nil {
		_, err := os.Stat("/dev/kvm")
		detail := "it is chosen when the image is there; /dev/kvm is"
		if err != nil {
			detail = "it is chosen when the image is there; /dev/kvm is not, so guests will be emulated"
		}
		return Check{name, VerdictWarning, detail, "smolvm pull"}
	}
	initrd, err := h.initrd(ctx, img)
	if err != nil {
		return Check{name, VerdictBroken, err.Error(), ""}
	}
	accelerator, reason, err := h.accelerator(ctx, img.Kernel, initrd)
	switch {
	case err != nil:
		return Check{name, VerdictBroken, err.Error(), ""}
	case accelerator == vmm.TCG:
		return Check{name, VerdictWarning, "tcg, emulation: " + reason,
			"emulation is slow, and no security boundary: for code that may be hostile use a host with working KVM"}
	}
	return Check{name, VerdictOK, fmt.Sprintf("%s: %s", accelerator, reason), ""}
}

func (h *Host) checkForwarding() Check {
	const name = "port forwarding"
	if err := h.network.Capable(); err != nil {
		return Check{name, VerdictWarning, "transport=ssh_tunnel: " + err.Error(), "run as root for the kernel's own forwarding, which is faster"}
	}
	return Check{name, VerdictOK, "transport=nftables", ""}
}

// checkFirewalls has a check for each table of the host's that drops what VMs need.
func (h *Host) checkFirewalls(ctx context.Context) []Check {
	const name = "host firewall"
	if h.network.Capable() != nil {
		return nil // it is not asked to let anything through
	}
	obstacles, err := h.network.Obstacles(ctx)
	if err != nil {
		return []Check{{name, VerdictWarning, err.Error(), ""}}
	}
	if len(obstacles) == 0 {
		return []Check{{name, VerdictOK, "nothing in the way", ""}}
	}
	checks := make([]Check, len(obstacles))
	for i, o := range obstacles {
		checks[i] = Check{name, VerdictWarning, o.String(), o.Advice}
	}
	return checks
}

func (h *Host) checkEgress(ctx context.Context) Check {
	const name = "guests' network"
	if h.network.Capable() == nil {
		return Check{name, VerdictOK, "nat", ""}
	}
	if err := h.driver.Egress(ctx); err != nil {
		return Check{name, VerdictWarning, "guests cannot reach the network: " + err.Error(), "run as root, or install the Debian package slirp4netns"}
	}
	return Check{name, VerdictOK, "user mode", ""}
}

func checkNameservers() Check {
	const name = "name servers"
	resolver, err := network.Nameservers()
	switch {
	case err != nil:
		return Check{name, VerdictWarning, err.Error(), ""}
	case len(resolver.Nameservers) == 0:
		return Check{name, VerdictWarning, "the host has none that a guest can reach", "add one that is not on the host's loopback to /etc/resolv.conf"}
	}
	return Check{name, VerdictOK, fmt.Sprint(resolver.Nameservers), ""}
}
