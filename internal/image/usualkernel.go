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
		choice := kernelChoice{Package: k.store.kernelPackage()}
		have = k.ofPackage(ctx, job, choice)
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
	name, id := Default, ""
	if have != nil {
		name, id = have.Name, have.ID
	}
	img, release, err := k.acquire(ctx, name, id, job.report)
	if err != nil {
		return installed{}, fmt.Errorf("get a kernel: %w", err)
	}
	defer release()
	return installOf(ctx, job, tools["debugfs"], img, tree)
}

// acquire returns an image, which is not removed before the release. Default is built if there is
// none, and any other is looked for by its ID.
func (k *usualKernel) acquire(ctx context.Context, name, id string, progress func(Progress)) (*Image, func(), error) {
	if name == Default {
		return k.store.Acquire(ctx, Default, PullMissing, progress)
	}
	keep, err := k.store.lockUse(ctx, shared)
	if err != nil {
		return nil, nil, err
	}
	img, err := k.store.Find(name, id)
	if err != nil {
		_ = keep.Close() // nothing was written to it
		return nil, nil, err
	}
	return img, func() { _ = keep.Close() }, nil
}

// ofPackage returns an image that has the kernel which would be downloaded, or nil.
func (k *usualKernel) ofPackage(ctx context.Context, job *Job, choice kernelChoice) *Image {
	if choice.Package == "" {
		return nil
	}
	wanted, err := choice.resolve(ctx, job)
	if err != nil {
		return nil
	}
	all, err := k.store.List()
	if err != nil {
		return nil
	}
	at := slices.IndexFunc(all, func(v Version) bool { return v.Err == nil && v.KernelPackage == wanted })
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
