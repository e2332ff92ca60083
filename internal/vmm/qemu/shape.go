package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"github.com/smolvm/smolvm/internal/vmm"
)

// Shape names what a machine saved with this config depends on, but for what its files hold:
// another name means that it must not go on from there. It changes with QEMU, the host's
// processor if guests see that, and all that is said of the machine but its paths, its
// TAP and its MAC address.
func (d *Driver) Shape(ctx context.Context, config vmm.Config) (string, error) {
	binary, err := find(d.opts.Binary, debianPackage)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(binary)
	if err != nil {
		return "", fmt.Errorf("find QEMU: %w", err)
	}
	l := launch{Config: config}
	l.Network.MAC, l.Network.TAP = nil, nil
	l.Kernel, l.Initrd, l.Memory, l.From = "", "", "", nil
	if l.Disk != "" {
		l.Disk = "disk"
	}
	if l.Accelerator == vmm.TCG {
		l.TSCKHz, _ = tscFrequency(ctx, d.opts.CacheDir) // what is not known is not told the guest
	}
	args, err := arguments(l)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%q %d %d\n%q\n", binary, info.Size(), info.ModTime().UnixNano(), args)
	if l.Accelerator == vmm.KVM {
		cpu, err := hostCPU()
		if err != nil {
			return "", err
		}
		// The kernel's part in moving packets is agreed upon with the guest.
		_, vhost := os.Stat("/dev/vhost-net")
		fmt.Fprintf(sum, "%q %t\n", cpu, vhost == nil)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// hostCPU describes the processor that guests under KVM see, and what decides what they see.
func hostCPU() (string, error) {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", fmt.Errorf("describe processor: %w", err)
	}
	first, _, _ := strings.Cut(string(data), "\n\n")
	var lines []string
	for line := range strings.Lines(first) {
		// How fast it runs at the moment says nothing.
		if !strings.HasPrefix(line, "cpu MHz") && !strings.HasPrefix(line, "bogomips") {
			lines = append(lines, line)
		}
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "", fmt.Errorf("describe kernel: %w", err)
	}
	return strings.Join(lines, "") + string(release), nil
}
