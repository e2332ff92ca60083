package image

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestUsualKernel makes images where there is none that has a kernel, of a real package.
func TestUsualKernel(t *testing.T) {
	needDebian(t)
	if testing.Short() {
		t.Skip("downloads a package and is asked to be short")
	}
	s := NewStore(Options{Dir: t.TempDir(), Log: testLog()})
	dir := t.TempDir()
	first, err := s.Build(t.Context(), "first", BuildOptions{From: "dir:" + dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Build(t.Context(), "second", BuildOptions{From: "dir:" + dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(first.KernelPackage, "linux-image-"+first.KernelVersion) || second.KernelPackage != first.KernelPackage {
		t.Errorf("the kernels are of %q and %q", first.KernelPackage, second.KernelPackage)
	}
	one, err := os.Stat(first.Kernel)
	other, err2 := os.Stat(second.Kernel)
	if err := errors.Join(err, err2); err != nil || !os.SameFile(one, other) {
		t.Errorf("they are two files: %v", err)
	}
	for _, img := range []*Image{first, second} {
		checkModuleOrder(t, img)
		if dep := contentsOf(t, img, "/lib/modules/"+img.KernelVersion+"/modules.dep"); !strings.Contains(dep, "overlay.ko") {
			t.Errorf("%s: modules.dep has %q", img.Name, dep)
		}
	}
	// No other image was made for that.
	if _, err := os.Stat(filepath.Join(s.dir, Default)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the default image: %v", err)
	}
	// A kernel that is somebody's own is no usual one, whatever its version.
	own, err := s.Build(t.Context(), "own", BuildOptions{From: "dir:" + dir, Kernel: first.Kernel, KernelModules: modulesOf(t, first)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if own.KernelPackage != "" || own.KernelVersion != first.KernelVersion {
		t.Errorf("got %+v", own)
	}
}

// modulesOf returns a directory with the modules for programs of an image.
func modulesOf(t *testing.T, img *Image) string {
	t.Helper()
	dir := t.TempDir()
	program(t, "debugfs", "-R", "rdump /lib/modules/"+img.KernelVersion+" "+dir, img.RootFS)
	return filepath.Join(dir, img.KernelVersion)
}
