package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/smolvm/smolvm/internal/image/kernel"
)

// bootModules are what a machine needs before it has a root filesystem: its bus, its
// devices and the filesystem itself.
func bootModules() []string { return slices.Sorted(maps.Keys(bootDrivers())) }

// bootDrivers are the options by which a kernel has bootModules built in.
func bootDrivers() map[string]string {
	return map[string]string{
		"virtio_mmio": "CONFIG_VIRTIO_MMIO", "virtio_blk": "CONFIG_VIRTIO_BLK", "virtio_net": "CONFIG_VIRTIO_NET",
		"virtio_console": "CONFIG_VIRTIO_CONSOLE", "ext4": "CONFIG_EXT4_FS",
	}
}

// bootModulesIfAny are loaded too where the kernel has them as modules: a source of
// randomness, and what ext4 asks the kernel for by an alias.
func bootModulesIfAny() []string {
	return []string{"virtio_rng", "crc32c_generic"}
}

// guestModules are there for programs in the machine: for containers, VPNs and
// filesystems in files. The kernel loads most of them by itself when they are first used.
func guestModules(m *kernel.Modules) []string {
	names := []string{
		"overlay", "fuse", "virtiofs", "squashfs", "isofs", "vfat", "nls_cp437", "nls_iso8859_1", "nls_utf8", "nls_ascii",
		"loop", "dm_mod", "dm_crypt", "nbd", "tun", "tap", "veth", "dummy", "bridge", "br_netfilter", "macvlan", "ipvlan", "8021q",
		"vxlan", "wireguard", "ifb", "xfrm_user", "af_packet", "ip_tunnel", "sit", "ipip", "ip_gre",
		"vsock", "vmw_vsock_virtio_transport", "sch_netem", "sch_tbf", "sch_htb", "sch_fq", "sch_fq_codel", "sch_ingress", "cls_u32",
		"tcp_bbr", "inet_diag", "tcp_diag", "udp_diag", "unix_diag", "binfmt_misc", "algif_hash", "algif_skcipher",
	}
	for _, dir := range []string{"kernel/net/netfilter", "kernel/net/ipv4/netfilter", "kernel/net/ipv6/netfilter", "kernel/net/bridge"} {
		names = append(names, m.Below(dir)...)
	}
	return m.Available(names...)
}

// guestModulesDir is where the root filesystem of debian has the modules for programs.
const guestModulesDir = "usr/lib/modules"

// linux is a kernel that is put into an image.
type linux struct {
	version string
	pkg     string // that has it, if one has
	vmlinux []byte
	modules *kernel.Modules
	dir     string   // of the modules on the host, a /lib/modules/VERSION; empty: there are none
	boot    []string // the modules for booting, in load order
}

// newLinux returns a kernel, whose modules are in the first of the directories that is there. It
// fails with kernel.ErrUnsuitable or kernel.ErrNoModule unless a machine can boot it.
func newLinux(ctx context.Context, file []byte, modules func(version string) []string) (*linux, error) {
	vmlinux, err := kernel.Parse(ctx, file)
	if err != nil {
		return nil, err
	}
	l := &linux{vmlinux: vmlinux}
	if l.version, err = kernel.Version(vmlinux); err != nil {
		return nil, err
	}
	if err := kernel.CheckEntry(vmlinux); err != nil {
		return nil, err
	}
	for _, dir := range modules(l.version) {
		if isThere(dir) {
			l.dir = dir
			break
		}
	}
	if l.dir == "" {
		l.modules, err = kernel.BuiltIn(vmlinux, bootDrivers())
	} else {
		l.modules, err = kernel.OpenModules(l.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("find modules of Linux %s: %w", l.version, err)
	}
	if l.boot, err = l.modules.LoadOrder(slices.Concat(bootModules(), l.modules.Available(bootModulesIfAny()...))...); err != nil {
		return nil, fmt.Errorf("cannot boot Linux %s: %w", l.version, err)
	}
	return l, l.modules.CheckVersion(l.version, l.boot...)
}

// linuxOfPackages unpacks a kernel's packages and returns what is in them.
func (j *Job) linuxOfPackages(ctx context.Context, dpkgDeb string, debs []string) (*linux, error) {
	if len(debs) == 0 {
		return nil, errors.New("unpack kernel: its package was not downloaded")
	}
	unpacked := filepath.Join(j.Dir, "kernel")
	for _, deb := range debs {
		if _, err := j.run(ctx, command{name: dpkgDeb, args: []string{"-x", deb, unpacked}}); err != nil {
			return nil, err
		}
	}
	images, err := filepath.Glob(filepath.Join(unpacked, "boot", "vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("unpack kernel: %d kernels in its packages, 1 expected", len(images))
	}
	file, err := os.ReadFile(images[0])
	if err != nil {
		return nil, fmt.Errorf("unpack kernel: %w", err)
	}
	l, err := newLinux(ctx, file, modulesBelow(unpacked))
	if err == nil {
		l.pkg = packageOfDeb(debs[0])
	}
	return l, err
}

// removeKernel undoes an install.
func (j *Job) removeKernel() error {
	return errors.Join(os.RemoveAll(filepath.Join(j.Dir, kernelFile)), os.RemoveAll(filepath.Join(j.Dir, modulesDir)))
}

// modulesBelow are where a root filesystem has the modules of a version: in /lib or, in newer
// releases, in /usr/lib.
func modulesBelow(root string) func(version string) []string {
	return func(version string) []string {
		return []string{filepath.Join(root, "usr/lib/modules", version), filepath.Join(root, "lib/modules", version)}
	}
}

// install writes the kernel and the modules for booting. It returns the files of the latter, in
// the order in which they are loaded.
func (l *linux) install(job *Job) ([]string, error) {
	if err := os.WriteFile(filepath.Join(job.Dir, kernelFile), l.vmlinux, 0o444); err != nil {
		return nil, fmt.Errorf("write kernel: %w", err)
	}
	dir := filepath.Join(job.Dir, modulesDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	var files []string
	for _, name := range l.boot {
		module, err := l.modules.Read(name)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, name+".ko"), module, 0o444); err != nil {
			return nil, fmt.Errorf("write kernel module: %w", err)
		}
		files = append(files, name+".ko")
	}
	return files, nil
}

// guestModules returns a directory with the modules for programs, with their index: what is to be
// the /lib/modules/VERSION of a guest. It is empty if the kernel has none.
func (l *linux) guestModules(ctx context.Context, job *Job, depmod string) (string, error) {
	root := filepath.Join(job.Dir, "guest-modules")
	to := filepath.Join(root, "lib/modules", l.version)
	if err := os.MkdirAll(to, 0o755); err != nil {
		return "", fmt.Errorf("install kernel modules: %w", err)
	}
	if l.dir == "" {
		return to, nil
	}
	names := slices.Concat(bootModules(), l.modules.Available(bootModulesIfAny()...), guestModules(l.modules))
	order, err := l.modules.LoadOrder(names...)
	if err != nil {
		return "", err
	}
	files := []string{"modules.builtin", "modules.builtin.modinfo", "modules.order"}
	for _, name := range order {
		file, _ := l.modules.File(name)
		files = append(files, file)
	}
	for _, file := range files {
		data, err := os.ReadFile(filepath.Join(l.dir, file))
		if errors.Is(err, fs.ErrNotExist) && file != path.Base(file) {
			return "", fmt.Errorf("install kernel modules: %w", err)
		} else if errors.Is(err, fs.ErrNotExist) {
			continue // old kernels have not all lists
		} else if err != nil {
			return "", fmt.Errorf("install kernel modules: %w", err)
		}
		if err := writePublic(filepath.Join(to, file), data); err != nil {
			return "", fmt.Errorf("install kernel modules: %w", err)
		}
	}
	if _, err := job.run(ctx, command{name: depmod, args: []string{"-b", root, l.version}}); err != nil {
		return "", err
	}
	// Whatever the umask is.
	return to, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return errors.Join(err, os.Chmod(path, 0o755))
		}
		return os.Chmod(path, 0o644)
	})
}

// writePublic writes a file, and makes the directories that it is in.
func writePublic(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}
