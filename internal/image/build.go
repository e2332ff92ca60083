package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// BuildOptions say what an image is built from.
type BuildOptions struct {
	// Packages are Debian packages that are installed beside the usual ones.
	Packages []string
	// From is what the image is made of, in place of packages. It is a root filesystem: "tar:FILE",
	// an archive, plain or compressed by gzip, zstd or xz, "dir:PATH", a directory, or "disk:FILE", an
	// ext4 filesystem or a disk with partitions of which one is that, raw or qcow2. Or it is a
	// container image: "docker://HOST/NAME:TAG" or a bare name like "python:3.13-alpine", in a
	// registry, "oci:PATH" or "oci:PATH:TAG", an OCI image layout, "oci-archive:FILE" or
	// "oci-archive:FILE:TAG", the same in an archive, or "docker-archive:FILE" or
	// "docker-archive:FILE:NAME:TAG", what docker save writes. A bare name is that of an image which is
	// here, if there is one. The kernel is that of the image "debian" or, if there is none, one of the
	// host's own package sources.
	From string
	// Kernel is the kernel of the image, in place of the usual one of the distribution: a file, whose
	// path has a slash in it, as a bzImage or an ELF program; or a package that has one, such as
	// "linux-image-amd64".
	Kernel string
	// KernelModules is the directory with the modules of a kernel that is a file. The default is
	// where they usually are, /lib/modules/VERSION; a kernel that has all drivers built in which
	// booting needs, and its configuration, needs none.
	KernelModules string
}

// Build builds the image anew, under any name, and makes it what the name means. Unless it is
// made of something else, it is of the host's own distribution, whatever the name. What the
// name meant before is kept: see Remove. progress is called as Ensure calls it, and the same
// holds when ctx ends.
//
// It fails with ErrInvalidName, ErrPackage if there is no such package, ErrOrigin or ErrKernel.
func (s *Store) Build(ctx context.Context, name string, opts BuildOptions, progress func(Progress)) (*Image, error) {
	name, err := ParseName(name)
	if err != nil {
		return nil, err
	}
	choice, err := chooseKernel(opts)
	if err != nil {
		return nil, err
	}
	if opts.From == "" {
		packages, err := checkPackages(opts.Packages)
		if err != nil {
			return nil, err
		}
		return s.buildAs(ctx, name, s.source, Job{Packages: packages, Kernel: choice, report: progress})
	}
	source, err := s.origin(name, opts)
	if err != nil {
		return nil, err
	}
	if !choice.isUsual() {
		source.kernel = choice
	}
	return s.buildAs(ctx, name, source, Job{report: progress})
}

// buildAs does a job that says what is wanted, when it is its turn at the name.
func (s *Store) buildAs(ctx context.Context, name string, source Source, job Job) (*Image, error) {
	h, err := s.enterToBuild(ctx, name, job.report)
	if err != nil {
		return nil, err
	}
	defer h.leave()
	return s.build(ctx, h, source, job)
}

// enterToBuild takes the directory of a name for a build.
func (s *Store) enterToBuild(ctx context.Context, name string, progress func(Progress)) (*home, error) {
	h, err := s.enter(ctx, name, func() {
		if progress != nil {
			progress(Progress{Stage: "wait for the process that builds the image"})
		}
	})
	if err != nil {
		return nil, err
	}
	// What a killed build left costs space, but stands in nobody's way.
	s.sweep(ctx, h.dir)
	return h, nil
}

// build does a job that says what is wanted, and makes the image the current one. It leaves
// nothing else.
func (s *Store) build(ctx context.Context, h *home, source Source, job Job) (*Image, error) {
	dir, err := os.MkdirTemp(h.dir, buildPrefix)
	if err != nil {
		return nil, fmt.Errorf("make build directory: %w", err)
	}
	if job.report == nil {
		job.report = func(Progress) {}
	}
	job.Dir, job.Log, job.lock = dir, s.log.With("image", h.name), h.lock
	img, err := s.make(ctx, h, source, &job)
	// The clean-up must happen though ctx ended.
	s.sweep(context.WithoutCancel(ctx), h.dir)
	if err != nil {
		return nil, fmt.Errorf("build image %q: %w", h.name, err)
	}
	return img, nil
}

// make lets the source make the image and puts it in its place. The rename of the
// directory is the moment from which on it exists.
func (s *Store) make(ctx context.Context, h *home, source Source, job *Job) (*Image, error) {
	start := time.Now()
	work, final := job.Dir, filepath.Join(job.Dir, "image")
	manifest, err := source.Build(ctx, job)
	if err != nil {
		return nil, err
	}
	manifest.Packages = job.Packages
	if err := os.Mkdir(final, 0o755); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(work, modulesDir), 0o755); err != nil {
		return nil, err
	}
	for _, file := range []string{kernelFile, modulesDir, rootFSFile} {
		if err := os.Rename(filepath.Join(work, file), filepath.Join(final, file)); err != nil {
			return nil, err
		}
	}
	id, err := identify(ctx, final, manifest)
	if err != nil {
		return nil, err
	}
	if err := writeRecord(final, record{Manifest: manifest, ID: id, Created: time.Now().UTC().Truncate(time.Second)}); err != nil {
		return nil, err
	}
	if err := seal(ctx, final); err != nil {
		return nil, err
	}
	if err := h.install(final, id, filepath.Join(work, "damaged")); err != nil {
		return nil, err
	}
	img, err := current(h.name, h.dir)
	if err != nil {
		return nil, err
	}
	s.log.Info("image built", "image", h.name, "id", id, "description", img.Description, "took", time.Since(start).Round(time.Millisecond))
	return img, nil
}

// install puts a finished image in its place and points to it. If the same one is there
// already that stays, because disks may be open that are made on it; unless it is damaged,
// then it is moved away.
func (h *home) install(finished, id, away string) error {
	place := filepath.Join(h.dir, id)
	if _, err := load(h.name, place); err == nil {
		return h.point(id)
	}
	if err := os.Rename(place, away); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(finished, place); err != nil {
		return err
	}
	return h.point(id)
}
