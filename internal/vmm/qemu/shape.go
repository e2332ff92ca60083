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

// Shape returns the shape of machines of this config. Every version of QEMU has its own.
func (d *Driver) Shape(ctx context.Context, config vmm.Config) (vmm.Shape, error) {
	binary, err := find(d.opts.Binary, debianPackage)
	if err != nil {
		return vmm.Shape{}, err
	}
	info, err := os.Stat(binary)
	if err != nil {
		return vmm.Shape{}, fmt.Errorf("find QEMU: %w", err)
	}
	l := launch{Config: config}
	l.Network.MAC, l.Network.TAP = nil, nil
	l.Kernel, l.Initrd, l.From = "", "", nil
	if l.Disk != "" {
		l.Disk = "disk"
	}
	args, err := arguments(l)
	if err != nil {
		return vmm.Shape{}, err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%q %d %d\n%q\n", binary, info.Size(), info.ModTime().UnixNano(), args)
	if l.Accelerator == vmm.KVM {
		cpu, err := hostCPU()
		if err != nil {
			return vmm.Shape{}, err
		}
		// The kernel's part in moving packets is agreed upon with the guest.
		_, vhost := os.Stat("/dev/vhost-net")
		fmt.Fprintf(sum, "%q %t\n", cpu, vhost == nil)
	}
	shape := vmm.Shape{Machine: hex.EncodeToString(sum.Sum(nil))}
	if l.Accelerator == vmm.TCG {
		shape.TSCKHz, _ = tscFrequency(ctx, d.opts.CacheDir) // what is not known is not told the guest
	}
	return shape, ctx.Err()
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
