package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/smolvm/smolvm/internal/image/kernel"
)

// bootModules are what a machine needs before it has a root filesystem: its bus, its
// devices and the filesystem itself.
func bootModules() []string {
	return []string{"virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "ext4"}
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

// linux is the kernel of an image.
type linux struct {
	version   string
	bootFiles []string // in the directory of modules, in load order
}

// installKernel unpacks the kernel's packages: the kernel and the modules for booting
// beside the tree, the other modules into it.
func (t *tree) installKernel(ctx context.Context) (*linux, error) {
	unpacked := filepath.Join(t.job.Dir, "kernel")
	if err := t.unpackKernel(ctx, unpacked); err != nil {
		return nil, err
	}
	images, err := filepath.Glob(filepath.Join(unpacked, "boot", "vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("unpack kernel: %d kernels in its packages, 1 expected", len(images))
	}
	k := &linux{version: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")}
	bzImage, err := os.ReadFile(images[0])
	if err != nil {
		return nil, fmt.Errorf("unpack kernel: %w", err)
	}
	vmlinux, err := kernel.VMLinux(ctx, bzImage)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(t.job.Dir, kernelFile), vmlinux, 0o444); err != nil {
		return nil, fmt.Errorf("write kernel: %w", err)
	}
	modules, dir, err := openModules(unpacked, k.version)
	if err != nil {
		return nil, err
	}
	if k.bootFiles, err = t.writeBootModules(modules); err != nil {
		return nil, err
	}
	return k, t.writeGuestModules(ctx, modules, dir, k.version)
}

// unpackKernel unpacks the packages that the hook downloaded into dir.
func (t *tree) unpackKernel(ctx context.Context, dir string) error {
	debs, err := filepath.Glob(filepath.Join(t.dir, kernelDebs, "*.deb"))
	if err != nil {
		return err
	}
	if len(debs) == 0 {
		return errors.New("unpack kernel: its package was not downloaded")
	}
	for _, deb := range debs {
		if _, err := t.job.run(ctx, command{name: t.host.tools["dpkg-deb"], args: []string{"-x", deb, dir}}); err != nil {
			return err
		}
	}
	return nil
}

// openModules finds the modules in an unpacked package, which has them in /lib or,
// in newer releases, in /usr/lib.
func openModules(unpacked, version string) (*kernel.Modules, string, error) {
	for _, lib := range []string{"usr/lib", "lib"} {
		dir := filepath.Join(unpacked, lib, "modules", version)
		if _, err := os.Stat(dir); err == nil {
			modules, err := kernel.OpenModules(dir)
			return modules, dir, err
		}
	}
	return nil, "", fmt.Errorf("find kernel modules: none for Linux %s", version)
}

func (t *tree) writeBootModules(modules *kernel.Modules) ([]string, error) {
	order, err := modules.LoadOrder(slices.Concat(bootModules(), modules.Available(bootModulesIfAny()...))...)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(t.job.Dir, modulesDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	var files []string
	for _, name := range order {
		module, err := modules.Read(name)
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

// writeGuestModules puts modules into the tree and has their index made there, where
// its program is of the same release.
func (t *tree) writeGuestModules(ctx context.Context, modules *kernel.Modules, from, version string) error {
	names := slices.Concat(bootModules(), modules.Available(bootModulesIfAny()...), guestModules(modules))
	order, err := modules.LoadOrder(names...)
	if err != nil {
		return err
	}
	files := []string{"modules.builtin", "modules.builtin.modinfo", "modules.order"}
	for _, name := range order {
		file, _ := modules.File(name)
		files = append(files, file)
	}
	root, err := os.OpenRoot(t.dir)
	if err != nil {
		return fmt.Errorf("open root filesystem: %w", err)
	}
	defer root.Close() //nolint:errcheck // nothing is written through it
	g := guestFiles{root: root}
	dir := path.Join(guestModulesDir, version)
	for _, file := range files {
		g.copy(filepath.Join(from, file), path.Join(dir, file))
	}
	if g.err != nil {
		return fmt.Errorf("install kernel modules: %w", g.err)
	}
	if _, err := t.job.run(ctx, command{name: "/usr/sbin/depmod", args: []string{version}, chroot: t.dir}); err != nil {
		return err
	}
	indexes, err := fs.Glob(root.FS(), path.Join(dir, "modules.*"))
	if err != nil {
		return fmt.Errorf("install kernel modules: %w", err)
	}
	for _, index := range indexes {
		g.public(index, 0o644)
	}
	if g.err != nil {
		return fmt.Errorf("install kernel modules: %w", g.err)
	}
	return nil
}
