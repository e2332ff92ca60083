package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/smolvm/smolvm/internal/image/apt"
)

// policy keeps packages from starting services when they are installed: nothing runs
// in a machine but the guest program and what it is told to run.
const policy = `#!/bin/sh
# There is no init system here: services are started by hand.
exit 101
`

const hosts = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
`

// configure gives the tree its own settings and takes out what only the build needed or
// what would make two machines one: identities and keys.
func (t *tree) configure(hostEtc string) error {
	root, err := os.OpenRoot(t.dir)
	if err != nil {
		return fmt.Errorf("open root filesystem: %w", err)
	}
	defer root.Close() //nolint:errcheck // nothing is written through it
	g := guestFiles{root: root}

	g.remove("etc/apt/sources.list", "etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
		"var/lib/dbus/machine-id", "etc/machine-id", "etc/resolv.conf", "etc/hostname", kernelDebs)
	for _, pattern := range []string{
		"etc/apt/sources.list.d/*", "etc/ssh/ssh_host_*", "var/log/*.log", "var/log/apt/*", "var/cache/debconf/*-old",
		"var/lib/dpkg/*-old", "tmp/*", "run/*", "dev/*",
	} {
		g.removeAll(pattern)
	}

	// The guest program fills these in. Without an identity of its own in it, a
	// machine-id that exists is left to it too.
	g.write("etc/machine-id", 0o444, nil)
	g.write("etc/resolv.conf", 0o644, nil)
	g.write("etc/hostname", 0o644, nil)
	g.write("etc/hosts", 0o644, []byte(hosts))
	g.write("etc/fstab", 0o644, nil)
	g.write("usr/sbin/policy-rc.d", 0o755, []byte(policy))
	g.write("etc/dpkg/dpkg.cfg.d/smolvm", 0o644, []byte(dpkgOptions))
	// Packages that register manual pages fail without these.
	for section := range 8 {
		g.mkdir(fmt.Sprintf("usr/share/man/man%d", section+1))
	}

	settings := append([]apt.Setting{{Name: "Acquire::Languages", Value: "none"}}, apt.ForGuest(t.host.settings)...)
	g.write("etc/apt/apt.conf.d/90smolvm", 0o644, apt.FormatConfig(settings))
	g.write("etc/apt/sources.list.d/"+t.host.release.ID+".sources", 0o644, apt.Format(t.host.sources))
	keyrings, err := t.keyrings(hostEtc)
	if err != nil {
		return err
	}
	for _, file := range keyrings {
		g.copy(file, strings.TrimPrefix(file, "/"))
	}
	if g.err != nil {
		return fmt.Errorf("configure root filesystem: %w", g.err)
	}
	return nil
}

// keyrings returns the host's key files that the package sources need: those that they
// name and, for those that name none, all that apt trusts.
func (t *tree) keyrings(hostEtc string) ([]string, error) {
	var files []string
	for _, e := range t.host.sources {
		if e.Option("Signed-By") != "" {
			files = append(files, e.Keyrings()...)
			continue
		}
		trusted, err := filepath.Glob(filepath.Join(hostEtc, "apt/trusted.gpg.d/*"))
		if err != nil {
			return nil, fmt.Errorf("find keyrings: %w", err)
		}
		files = append(files, trusted...)
	}
	slices.Sort(files)
	return slices.Compact(files), nil
}

// guestFiles changes files in a tree, and nowhere else whatever links are in it. The
// first error sticks.
type guestFiles struct {
	root *os.Root
	err  error
}

func (g *guestFiles) write(name string, perm fs.FileMode, data []byte) {
	g.mkdir(path.Dir(name))
	if g.err != nil {
		return
	}
	// A link there is replaced, not followed.
	if g.remove(name); g.err != nil {
		return
	}
	g.err = g.root.WriteFile(name, data, perm)
	g.public(name, perm)
}

// copy copies a file of the host, unless the tree has one of that name.
func (g *guestFiles) copy(hostFile, name string) {
	if g.err != nil {
		return
	}
	if _, err := g.root.Stat(name); err == nil {
		return
	}
	data, err := os.ReadFile(hostFile)
	if err != nil {
		g.err = err
		return
	}
	g.write(name, 0o644, data)
}

// mkdir makes a directory and those above it, where there are none.
func (g *guestFiles) mkdir(name string) {
	if g.err != nil || name == "." {
		return
	}
	if _, err := g.root.Stat(name); err == nil {
		return
	}
	g.mkdir(path.Dir(name))
	if g.err == nil {
		g.err = g.root.Mkdir(name, 0o755)
	}
	g.public(name, 0o755)
}

// public sets the permissions, which so far depended on the umask.
func (g *guestFiles) public(name string, perm fs.FileMode) {
	if g.err == nil {
		g.err = g.root.Chmod(name, perm)
	}
}

func (g *guestFiles) remove(names ...string) {
	for _, name := range names {
		if g.err == nil {
			g.err = g.root.RemoveAll(name)
		}
	}
}

func (g *guestFiles) removeAll(pattern string) {
	if g.err != nil {
		return
	}
	names, err := fs.Glob(g.root.FS(), pattern)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		g.err = err
		return
	}
	g.remove(names...)
}
