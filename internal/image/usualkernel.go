package image

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/smolvm/smolvm/internal/image/apt"
	"github.com/smolvm/smolvm/internal/image/rootfs"
)

// usualKernel is the kernel of images for which none was chosen: that of the image Default. If
// there is none it is got as that one's would be, which takes seconds, and of the same package as
// other images have it shared with them. Where that cannot be, Default is built.
type usualKernel struct{ store *Store }

// tools implements kernelSource.
func (k *usualKernel) tools() []tool { return []tool{{"debugfs", "e2fsprogs"}} }

// install implements kernelSource.
func (k *usualKernel) install(ctx context.Context, job *Job, tools map[string]string, tree *rootfs.Tree) (installed, error) {
	have, err := k.store.Get(Default)
	if err != nil {
		choice := k.choose(ctx, job)
		have = k.ofPackage(choice.Package)
		if own, err := findTools(choice.tools()...); have == nil && choice.Package != "" && err == nil {
			got, err := choice.install(ctx, job, own, tree)
			if err == nil || ctx.Err() != nil {
				return got, err
			}
			job.Log.Info("could not get a kernel alone", "package", choice.Package, "error", err)
			if err := job.removeKernel(); err != nil {
				return installed{}, err
			}
		}
	}
	img, release, err := k.acquire(ctx, have, job.report)
	if err != nil {
		return installed{}, fmt.Errorf("get a kernel: %w", err)
	}
	defer release()
	return installOf(ctx, job, tools["debugfs"], img, tree)
}

// acquire returns the image, or Default if there is none, and keeps it from being removed before
// the release.
func (k *usualKernel) acquire(ctx context.Context, have *Image, progress func(Progress)) (*Image, func(), error) {
	if have == nil || have.Name == Default {
		return k.store.Acquire(ctx, Default, PullMissing, progress)
	}
	return k.store.keep(ctx, have.Name, have.ID)
}

// choose returns the kernel that is to be downloaded, by the name of the very package that has it
// if that can be told.
func (k *usualKernel) choose(ctx context.Context, job *Job) kernelChoice {
	choice := kernelChoice{Package: k.store.kernelPackage()}
	if choice.Package == "" {
		return choice
	}
	if name, err := choice.resolve(ctx, job); err == nil {
		choice.Package = name
	}
	return choice
}

// ofPackage returns an image that has the kernel of the package, or nil.
func (k *usualKernel) ofPackage(name string) *Image {
	all, err := k.store.List()
	if err != nil || name == "" {
		return nil
	}
	at := slices.IndexFunc(all, func(v Version) bool { return v.Err == nil && v.KernelPackage == name })
	if at < 0 {
		return nil
	}
	return all[at].Image
}

// shareOf puts the kernel of another image, and its modules for booting, into the one of the job.
func shareOf(job *Job, of *Image) (installed, error) {
	got := installed{version: of.KernelVersion, pkg: of.KernelPackage}
	if err := share(of.Kernel, filepath.Join(job.Dir, kernelFile)); err != nil {
		return got, fmt.Errorf("copy kernel: %w", err)
	}
	if err := os.Mkdir(filepath.Join(job.Dir, modulesDir), 0o755); err != nil {
		return got, fmt.Errorf("copy kernel: %w", err)
	}
	for _, module := range of.Modules {
		file := filepath.Base(module)
		if err := share(module, filepath.Join(job.Dir, modulesDir, file)); err != nil {
			return got, fmt.Errorf("copy kernel: %w", err)
		}
		got.boot = append(got.boot, file)
	}
	return got, nil
}

// ownKernel is the kernel of the image that another is made of, with the modules that are there.
type ownKernel struct{ of *Image }

// tools implements kernelSource.
func (k *ownKernel) tools() []tool { return nil }

// install implements kernelSource.
func (k *ownKernel) install(_ context.Context, job *Job, _ map[string]string, _ *rootfs.Tree) (installed, error) {
	return shareOf(job, k.of)
}

// installOf is shareOf, and puts the modules for programs into the tree.
func installOf(ctx context.Context, job *Job, debugfs string, of *Image, tree *rootfs.Tree) (installed, error) {
	got, err := shareOf(job, of)
	if err != nil {
		return installed{}, err
	}
	// The other modules are in the filesystem of the image that has the kernel, which nobody
	// needs to mount. debugfs ends well whatever happened.
	if _, err := job.run(ctx, command{name: debugfs, args: []string{
		"-R", "rdump " + path.Join("/lib/modules", got.version) + " .", of.RootFS,
	}}); err != nil {
		return installed{}, err
	}
	from := filepath.Join(job.Dir, got.version)
	if !isThere(filepath.Join(from, "modules.dep")) {
		return installed{}, fmt.Errorf("copy kernel modules from image %q: it has none", of.Name)
	}
	return got, putModules(ctx, tree, from, got.version)
}

// hostKernelPackage is the package that has the kernel for virtual machines on this host, or empty.
func hostKernelPackage() string {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return ""
	}
	return kernelPackage(apt.ParseRelease(data))
}

// packageOfDeb is the package of a file that was downloaded: NAME_VERSION_ARCHITECTURE.deb.
func packageOfDeb(deb string) string {
	name, _, _ := strings.Cut(filepath.Base(deb), "_")
	return name
}
