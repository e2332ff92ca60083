package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/smolvm/smolvm/internal/image/apt"
)

// debian makes an image of the distribution that the host itself runs, Debian or
// Ubuntu, from the host's own package sources.
type debian struct {
	etc string // the host's /etc
}

func newDebian() *debian { return &debian{etc: "/etc"} }

var _ Source = (*debian)(nil)

// The stages of a build, in their order.
const (
	stagePrepare  = "read package lists"
	stageDownload = "download packages"
	stageUnpack   = "unpack packages"
	stageBase     = "install base system"
	stagePrograms = "install programs"
	stageKernel   = "download kernel"
	stageModules  = "prepare kernel"
	stageWrite    = "write root filesystem"
	stages        = 8
)

// includedPackages are in the image besides the essential ones and apt: python3 and what
// it needs for TLS, what configures the network and the kernel, and the few small programs
// that everyone reaches for first.
func includedPackages() []string {
	return []string{
		"python3", "ca-certificates", "iproute2", "kmod",
		"procps", "netbase", "iputils-ping", "curl",
	}
}

// standardPath is where programs are looked for in a machine.
const standardPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// host is what the build needs to know of this host.
type host struct {
	release  apt.Release
	sources  []apt.Entry
	settings []apt.Setting // how packages are fetched
	tools    map[string]string
	root     bool
}

// Build implements Source.
func (d *debian) Build(ctx context.Context, job *Job) (Manifest, error) {
	h, err := d.inspect(ctx, job)
	if err != nil {
		return Manifest{}, err
	}
	job.Stage(stagePrepare, stages)
	tree := &tree{job: job, host: h, dir: filepath.Join(job.Dir, "root")}
	if err := tree.bootstrap(ctx); err != nil {
		return Manifest{}, h.explain(err)
	}
	job.Stage(stageModules, stages)
	linux, modules, err := tree.installKernel(ctx)
	if err != nil {
		return Manifest{}, err
	}
	if err := tree.configure(d.etc); err != nil {
		return Manifest{}, err
	}
	job.Stage(stageWrite, stages)
	if err := tree.writeExt4(ctx, filepath.Join(job.Dir, rootFSFile)); err != nil {
		return Manifest{}, err
	}
	return Manifest{
		Description:   fmt.Sprintf("%s, Linux %s%s", h.release.Name, linux.version, withPackages(job.Packages)),
		KernelVersion: linux.version,
		KernelPackage: linux.pkg,
		Modules:       modules,
		Env: []string{
			standardPath,
			"LANG=C.UTF-8",
		},
	}, nil
}

// inspect finds out what the host has, and fails with ErrHost if that isn't enough.
func (d *debian) inspect(ctx context.Context, job *Job) (*host, error) {
	h := &host{root: os.Geteuid() == 0}
	if runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("%w: it has the processor architecture %s, not amd64", ErrHost, runtime.GOARCH)
	}
	osRelease, err := os.ReadFile(filepath.Join(d.etc, "os-release"))
	if err != nil {
		return nil, fmt.Errorf("%w: find out the distribution: %w", ErrHost, err)
	}
	h.release = apt.ParseRelease(osRelease)
	if kernelPackage(h.release) == "" || h.release.Codename == "" {
		return nil, fmt.Errorf("%w: it runs %q, and packages are known to be found only on Debian and Ubuntu", ErrHost, h.release.Name)
	}
	if err := h.findTools(); err != nil {
		return nil, err
	}
	entries, err := apt.ReadSources(filepath.Join(d.etc, "apt"))
	if err != nil {
		return nil, err
	}
	entries, err = apt.ExpandMirrors(entries, os.ReadFile)
	if err != nil {
		return nil, err
	}
	h.sources = apt.Select(entries, h.release, runtime.GOARCH)
	if len(h.sources) == 0 {
		return nil, fmt.Errorf("%w: /etc/apt has no package source for suite %q, component main, over HTTP",
			ErrHost, h.release.Codename)
	}
	dump, err := job.run(ctx, command{name: h.tools["apt-config"], args: []string{"dump"}})
	if err != nil {
		return nil, err
	}
	h.settings = apt.Fetching(apt.ParseConfig(dump))
	h.settings = append(h.settings, apt.EnvironmentProxies(h.settings, os.Getenv)...)
	return h, nil
}

// kernelPackage names the package that depends on the newest kernel for virtual
// machines. It is empty for an unknown distribution.
func kernelPackage(r apt.Release) string {
	switch r.ID {
	case "debian":
		return "linux-image-cloud-amd64"
	case "ubuntu":
		return "linux-image-virtual"
	}
	return ""
}

func (h *host) findTools() error {
	wanted := []tool{
		{"mmdebstrap", "mmdebstrap"}, {"mke2fs", "e2fsprogs"}, {"dpkg-deb", "dpkg"},
		{"apt-get", "apt"}, {"apt-config", "apt"}, {"apt-cache", "apt"}, {"depmod", "kmod"},
	}
	if !h.root {
		wanted = append(wanted, tool{"fakeroot", "fakeroot"}, tool{"tar", "tar"}, tool{"newuidmap", "uidmap"})
	}
	var err error
	if h.tools, err = findTools(wanted...); err != nil {
		return h.explain(err)
	}
	if h.root {
		return nil
	}
	me, err := user.Current()
	if err != nil {
		return fmt.Errorf("find out the user: %w", err)
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		ranges, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("read subordinate identities: %w", err)
		}
		if !hasRange(ranges, me.Username, me.Uid) {
			return h.explain(fmt.Errorf("%w: %s has no range for user %s; run: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s",
				ErrHost, file, me.Username, me.Username))
		}
	}
	return nil
}

// hasRange tells whether /etc/subuid or /etc/subgid gives the user any identities.
func hasRange(file []byte, name, uid string) bool {
	for line := range strings.Lines(string(file)) {
		who, _, found := strings.Cut(strings.TrimSpace(line), ":")
		if found && (who == name || who == uid) {
			return true
		}
	}
	return false
}

// explain adds the way out that a user has who is not root.
func (h *host) explain(err error) error {
	if h.root || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrPackage) {
		return err
	}
	return fmt.Errorf("%w\nor let root build the image once for all users of this host: sudo smolvm pull %s", err, Default)
}
