package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/smolvm/smolvm/internal/image/apt"
	"github.com/smolvm/smolvm/internal/image/ext4"
)

// tree is the root filesystem of an image while it is still a directory.
type tree struct {
	job  *Job
	host *host
	dir  string
}

// kernelDebs is where the kernel's packages are put in the tree, for a while.
const kernelDebs = "smolvm-kernel"

// kernelHook downloads the kernel's packages while the package lists are still there. It
// does not install them: what is wanted is a part of their files. $1 is the tree.
const kernelHook = `set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
mkdir "$1/` + kernelDebs + `"
cd "$1/` + kernelDebs + `"
` + kernelName + kernelDownload

// kernelName finds the package of the kernel that the package in $SMOLVM_KERNEL is, or depends on,
// and kernelDownload gets it into the working directory. Ubuntu has the modules in one of their own.
const (
	kernelName = `set -eu
case "$SMOLVM_KERNEL" in
linux-image-[0-9]*) image="$SMOLVM_KERNEL" ;;
*) image=$(apt-cache depends "$SMOLVM_KERNEL" | sed -n 's/^ *|\{0,1\}Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1) ;;
esac
test -n "$image" || { echo "package $SMOLVM_KERNEL names no kernel" >&2; exit 1; }
`
	kernelDownload = `modules="linux-modules-${image#linux-image-}"
apt-cache show "$modules" >/dev/null 2>&1 || modules=
apt-get --quiet --quiet download "$image" $modules
`
)

// dpkgOptions keep out what nobody reads in a virtual machine. They hold for packages
// that are installed later, too.
const dpkgOptions = `path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-include=/usr/share/locale/locale.alias
path-exclude=/usr/share/lintian/*
path-exclude=/usr/share/linda/*
`

// bootstrap installs the packages into the tree.
func (t *tree) bootstrap(ctx context.Context) error {
	scratch, err := t.job.scratch()
	if err != nil {
		return fmt.Errorf("make scratch directory: %w", err)
	}
	sources := filepath.Join(scratch, "debian.sources")
	settings := filepath.Join(scratch, "apt.conf")
	dpkg := filepath.Join(scratch, "dpkg.cfg")
	for path, data := range map[string][]byte{
		sources:  apt.Format(t.host.sources),
		settings: apt.FormatConfig(append([]apt.Setting{{Name: "Acquire::Retries", Value: "3"}}, t.host.settings...)),
		dpkg:     []byte(dpkgOptions),
	} {
		// They are read under other identities too, whatever the umask is.
		if err := errors.Join(os.WriteFile(path, data, 0o644), os.Chmod(path, 0o644)); err != nil {
			return fmt.Errorf("write settings: %w", err)
		}
	}
	mode, format, target := "root", "directory", t.dir
	if !t.host.root {
		mode, format, target = "unshare", "tar", t.dir+".tar"
	}
	stage, missing := t.stage(), ""
	_, err = t.job.run(ctx, command{
		name: t.host.tools["mmdebstrap"],
		args: []string{
			"--mode=" + mode, "--format=" + format, "--variant=minbase",
			"--include=" + strings.Join(slices.Concat(includedPackages(), t.job.Packages), ","),
			"--aptopt=" + settings, "--dpkgopt=" + dpkg, "--dpkgopt=force-unsafe-io", // nobody needs half a tree
			"--extract-hook=" + packageHook, "--customize-hook=" + kernelHook,
			t.host.release.Codename, target, sources,
		},
		env: []string{
			"TMPDIR=" + scratch, "HOME=" + scratch,
			"SMOLVM_KERNEL=" + cmp.Or(t.job.Kernel.Package, kernelPackage(t.host.release)), "SMOLVM_PACKAGES=" + strings.Join(t.job.Packages, " "),
		},
		isolated: t.host.root,
		line: func(line string) {
			if names, found := strings.CutPrefix(line, missingMark); found {
				missing = strings.TrimSpace(names)
			}
			stage(line)
		},
	})
	switch {
	case err == nil && t.host.root:
		return nil
	case err == nil:
		return t.unpack(ctx, target)
	case missing != "":
		return fmt.Errorf("%w: %s", ErrPackage, missing)
	}
	return err
}

// stage returns a function that follows mmdebstrap by the lines that it writes.
func (t *tree) stage() func(line string) {
	marks := []struct{ text, stage string }{
		{"I: downloading packages", stageDownload},
		{"I: extracting archives", stageUnpack},
		{"I: installing essential packages", stageBase},
		{"I: installing remaining packages", stagePrograms},
		{"I: running --customize-hook", stageKernel},
	}
	return func(line string) {
		for i, mark := range marks {
			if strings.HasPrefix(line, mark.text) {
				marks = marks[i+1:]
				t.job.Stage(mark.stage, stages)
				return
			}
		}
	}
}

// installKernel puts the kernel into the image, and the modules for programs into the tree. It
// returns it, and the files of the modules for booting, in load order.
func (t *tree) installKernel(ctx context.Context) (*linux, []string, error) {
	l, err := t.linux(ctx)
	if err != nil {
		return nil, nil, err
	}
	boot, err := l.install(t.job)
	if err != nil {
		return nil, nil, err
	}
	modules, err := l.guestModules(ctx, t.job, t.host.tools["depmod"])
	if err != nil {
		return nil, nil, err
	}
	root, err := os.OpenRoot(t.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("open root filesystem: %w", err)
	}
	defer root.Close() //nolint:errcheck // nothing is written through it
	g := guestFiles{root: root}
	err = filepath.WalkDir(modules, func(file string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			g.copy(file, path.Join(guestModulesDir, l.version, strings.TrimPrefix(file, modules)))
		}
		return errors.Join(err, g.err)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("install kernel modules: %w", err)
	}
	return l, boot, nil
}

// linux is the kernel that is wanted, or else the one whose packages the hook downloaded.
func (t *tree) linux(ctx context.Context) (*linux, error) {
	if t.job.Kernel.Path != "" {
		return t.job.Kernel.open(ctx)
	}
	debs, err := filepath.Glob(filepath.Join(t.dir, kernelDebs, "*.deb"))
	if err != nil {
		return nil, err
	}
	return t.job.linuxOfPackages(ctx, t.host.tools["dpkg-deb"], debs)
}

// rootFSSize is the virtual size of the root filesystem. It is what a machine has room
// for without its filesystem being grown; a file takes no space for what is empty.
const rootFSSize = 8 << 30

// rootLabel is the label of the root filesystem.
const rootLabel = "smolvm-root"

// writeExt4 writes the tree as a filesystem to a new, sparse file.
func (t *tree) writeExt4(ctx context.Context, path string) error {
	return ext4.OnHoles(func(extended string) error { return t.makeExt4(ctx, path, extended) })
}

func (t *tree) makeExt4(ctx context.Context, path, extended string) error {
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("make file for root filesystem: %w", err)
	}
	if err := errors.Join(file.Truncate(rootFSSize), file.Close()); err != nil {
		return fmt.Errorf("make file for root filesystem: %w", err)
	}
	// Nothing is reserved for root: everyone in a machine is.
	args := []string{"-q", "-F", "-t", "ext4", "-m", "0", "-L", rootLabel, "-E", extended, "-d", t.dir, path}
	if !t.host.root {
		return t.pretendRoot(ctx, t.host.tools["mke2fs"], args)
	}
	_, err = t.job.run(ctx, command{name: t.host.tools["mke2fs"], args: args})
	return err
}
