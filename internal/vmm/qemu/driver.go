// Package qemu runs virtual machines with QEMU.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/smolvm/smolvm/internal/vmm"
)

const (
	defaultBinary = "qemu-system-x86_64"
	debianPackage = "qemu-system-x86"
	// monitorTimeout bounds the time that QEMU takes to answer for the first
	// time: 50 ms on an idle host.
	monitorTimeout = 30 * time.Second
)

// errEnded is returned for what is asked of a machine that has ended in order.
var errEnded = errors.New("the machine has ended")

// Options are what a Driver depends on. The zero value works.
type Options struct {
	Binary   string // path or name of QEMU; default: qemu-system-x86_64
	CacheDir string // keeps what was found out about this host; empty: nothing is kept
	Log      *slog.Logger
	// Block is what guests with vmm.NetworkUser must not reach, in addition to
	// the host itself, link-local addresses and other VMs.
	Block []netip.Prefix
	// ProbeTimeout is how long a guest may take to reach user space under KVM
	// before KVM counts as not working; default: 5 s.
	ProbeTimeout time.Duration
}

// Driver starts machines. Its methods may be called concurrently.
type Driver struct{ opts Options }

// NewDriver returns a driver. It touches nothing yet.
func NewDriver(opts Options) *Driver {
	if opts.Binary == "" {
		opts.Binary = defaultBinary
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.ProbeTimeout == 0 {
		opts.ProbeTimeout = 5 * time.Second
	}
	return &Driver{opts}
}

// Version returns QEMU's version as it tells it, such as "7.2.22 (Debian ...)".
// If QEMU is missing, the error is a *NotInstalledError.
func (d *Driver) Version(ctx context.Context) (string, error) {
	binary, err := find(d.opts.Binary, debianPackage)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, binary, "--version")
	cmd.Env = childEnvironment()
	output, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ask QEMU for its version: %w", err)
	}
	line, _, _ := strings.Cut(string(output), "\n")
	version, ok := strings.CutPrefix(line, "QEMU emulator version ")
	if !ok {
		return "", fmt.Errorf("ask QEMU for its version: it says %q", line)
	}
	return strings.TrimSpace(version), nil
}

// Egress tells whether guests with vmm.NetworkUser can reach the network here:
// nil, or the reason why not. It tries it.
func (d *Driver) Egress(ctx context.Context) error {
	e, err := newEgress(ctx, d.opts.Block, d.opts.Log)
	if err != nil {
		return err
	}
	return e.close()
}

// Start starts a machine. It returns as soon as the guest begins to boot, or goes on.
// The machine's directory must not be in use by another one. A cancelled ctx ends
// the start, not the machine. If QEMU is missing, the error is a *NotInstalledError.
func (d *Driver) Start(ctx context.Context, config vmm.Config) (vmm.Machine, error) {
	m, err := d.start(ctx, launch{Config: config}, nil)
	var refused *refusedError
	if errors.As(err, &refused) && strings.Contains(strings.ToLower(err.Error()), string(config.Accelerator)) {
		err = fmt.Errorf("%w: %w", vmm.ErrAccelerator, err)
	}
	if err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	return m, nil
}

func (d *Driver) start(ctx context.Context, l launch, console io.Writer) (*machine, error) {
	binary, err := find(d.opts.Binary, debianPackage)
	if err != nil {
		return nil, err
	}
	if err := check(&l.Config); err != nil {
		return nil, err
	}
	if l.Accelerator == vmm.TCG {
		if l.TSCKHz, err = tscFrequency(ctx, d.opts.CacheDir); ctx.Err() != nil {
			return nil, ctx.Err()
		} else if err != nil {
			d.opts.Log.Warn("an emulated guest's clock may drift", "error", err)
		}
	}
	s := &starter{driver: d, binary: binary, launch: l, console: console, isolated: true}
	m, err := s.start(ctx)
	if err == nil || ctx.Err() != nil || !mayNotIsolate(err) {
		return m, err
	}
	// Rather a VM with less protection against guests that break out of QEMU than
	// none. What a guest can reach by itself does not change.
	s.isolated = false
	m, errNow := s.start(ctx)
	if errNow != nil {
		return nil, errNow
	}
	d.opts.Log.Warn("QEMU runs without namespaces of its own", "reason", err)
	return m, nil
}

// check completes config and refuses what QEMU would explain less well.
func check(config *vmm.Config) error {
	if config.MemoryMiB < 64 || config.CPUs < 1 {
		return fmt.Errorf("a machine needs 64 MiB and 1 CPU at least, not %d MiB and %d", config.MemoryMiB, config.CPUs)
	}
	if config.Network.Mode == vmm.NetworkTAP && config.Network.TAP == nil {
		return errors.New("no TAP device is given")
	}
	files := map[string]*string{"disk": &config.Disk}
	if config.From == nil {
		files["kernel"], files["initrd"] = &config.Kernel, &config.Initrd
	}
	for what, path := range files {
		if *path == "" && what == "disk" {
			continue
		}
		if _, err := os.Stat(*path); err != nil {
			return fmt.Errorf("find %s: %w", what, err)
		}
		var err error
		if *path, err = filepath.Abs(*path); err != nil {
			return fmt.Errorf("find %s: %w", what, err)
		}
	}
	return nil
}
