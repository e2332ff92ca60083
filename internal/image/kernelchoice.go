package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/smolvm/smolvm/internal/image/kernel"
)

// ErrKernel is wrapped by errors about a kernel that was asked for and that images cannot have.
var ErrKernel = errors.New("unsuitable kernel")

// kernelChoice is the kernel that somebody wants in an image. The zero value is the usual one.
type kernelChoice struct {
	Path    string // of a kernel's file, if it is one
	Modules string // the directory of its modules; empty: where they usually are
	Package string // that has the kernel, if it is of a package
}

// isUsual tells whether nothing was chosen.
func (c kernelChoice) isUsual() bool { return c == kernelChoice{} }

// chooseKernel reads what was chosen: a path, which has a slash, or a package. It fails with
// ErrKernel or ErrPackage.
func chooseKernel(opts BuildOptions) (kernelChoice, error) {
	switch {
	case opts.Kernel == "" && opts.KernelModules != "":
		return kernelChoice{}, fmt.Errorf("%w: modules are given without a kernel", ErrKernel)
	case opts.Kernel == "":
		return kernelChoice{}, nil
	case !strings.Contains(opts.Kernel, "/"):
		if _, err := checkPackages([]string{opts.Kernel}); err != nil {
			return kernelChoice{}, fmt.Errorf("%w; the path of a kernel has a slash, as in ./vmlinuz", err)
		}
		if opts.KernelModules != "" {
			return kernelChoice{}, fmt.Errorf("%w: package %s brings its modules along", ErrKernel, opts.Kernel)
		}
		return kernelChoice{Package: opts.Kernel}, nil
	}
	c := kernelChoice{Path: opts.Kernel, Modules: opts.KernelModules}
	for _, path := range []*string{&c.Path, &c.Modules} {
		if *path == "" {
			continue
		}
		if _, err := os.Stat(*path); err != nil {
			return c, fmt.Errorf("%w: %w", ErrKernel, err)
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return c, fmt.Errorf("find %s: %w", *path, err)
		}
		*path = abs
	}
	return c, nil
}

// maxKernelFile bounds what is read as a kernel, in bytes.
const maxKernelFile = 1 << 30

// open reads the kernel at the path. It fails with ErrKernel.
func (c kernelChoice) open(ctx context.Context) (*linux, error) {
	l, err := c.read(ctx)
	switch {
	case errors.Is(err, kernel.ErrNoModule) && c.Modules == "":
		return nil, fmt.Errorf("%w: %s: %w; say where its modules are with --modules", ErrKernel, c.Path, err)
	case err != nil && ctx.Err() == nil:
		return nil, fmt.Errorf("%w: %s: %w", ErrKernel, c.Path, err)
	}
	return l, err
}

func (c kernelChoice) read(ctx context.Context) (*linux, error) {
	info, err := os.Stat(c.Path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > maxKernelFile:
		return nil, fmt.Errorf("it is no file of up to %d bytes: %w", maxKernelFile, fs.ErrInvalid)
	}
	file, err := os.ReadFile(c.Path)
	if err != nil {
		return nil, err
	}
	return newLinux(ctx, file, func(version string) []string {
		if c.Modules != "" {
			return []string{c.Modules}
		}
		// Beside a kernel in /boot, or where its package was unpacked.
		root := filepath.Dir(filepath.Dir(c.Path))
		return append(modulesBelow(root)(version), modulesBelow("/")(version)...)
	})
}

// download gets the packages of a kernel, for which no tree of packages is made, from the host's
// own sources and lists, and returns their files.
func (c kernelChoice) download(ctx context.Context, job *Job) ([]string, error) {
	dir := filepath.Join(job.Dir, "packages")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("download kernel: %w", err)
	}
	if err := c.script(ctx, job, dir, kernelName+kernelDownload); err != nil {
		return nil, err
	}
	return filepath.Glob(filepath.Join(dir, "*.deb"))
}

// resolve returns the package that is downloaded for the one that was chosen.
func (c kernelChoice) resolve(ctx context.Context, job *Job) (string, error) {
	file := filepath.Join(job.Dir, "kernel-package")
	if err := c.script(ctx, job, job.Dir, kernelName+`echo "$image" >kernel-package`); err != nil {
		return "", err
	}
	name, err := os.ReadFile(file)
	return strings.TrimSpace(string(name)), err
}

// script runs a script that finds the package in $SMOLVM_KERNEL.
func (c kernelChoice) script(ctx context.Context, job *Job, dir, script string) error {
	sh, err := findTool("sh")
	if err != nil {
		return err
	}
	_, err = job.run(ctx, command{
		name: sh, args: []string{"-c", script}, dir: dir, env: []string{"SMOLVM_KERNEL=" + c.Package},
	})
	if err != nil {
		return fmt.Errorf("%w: %s, of the host's package lists (apt-get update gets them anew): %w", ErrPackage, c.Package, err)
	}
	return nil
}
