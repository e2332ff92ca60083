package image

import (
	"archive/tar"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smolvm/smolvm/internal/image/rootfs"
	"github.com/smolvm/smolvm/internal/oci"
)

// baseStore returns a store whose default image has a real root filesystem, with modules for
// programs in it or without.
func baseStore(t *testing.T, modules bool) *Store {
	t.Helper()
	s, _ := fakeStore(t, func(ctx context.Context, job *Job) error {
		tree, err := rootfs.FromDir(ctx, t.TempDir(), rootfs.Limits{})
		if err != nil {
			return err
		}
		if modules {
			dir := guestModulesDir + "/1.2.3"
			if err := errors.Join(tree.Mkdir("usr", 0o755), tree.Mkdir("usr/lib", 0o755), tree.Mkdir("usr/lib/modules", 0o755), tree.Mkdir(dir, 0o755),
				tree.Symlink("usr/lib", "lib"), tree.WriteFile(dir+"/modules.dep", 0o644, []byte("dependencies"))); err != nil {
				return err
			}
		}
		path := filepath.Join(job.Dir, rootFSFile)
		if err := os.Remove(path); err != nil {
			return err
		}
		mke2fs, err := findTool("mke2fs")
		if err != nil {
			return err
		}
		return tree.WriteExt4(ctx, path, rootfs.Ext4Options{Mke2fs: mke2fs, Size: 64 << 20})
	})
	return s
}

// archiveOf writes a tar archive of these entries; contents are of a file only.
func archiveOf(t *testing.T, contents string, entries ...tar.Header) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tree.tar")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(file)
	for _, h := range entries {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(contents))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(contents)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), file.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// contentsOf returns what a file in the image's root filesystem holds.
func contentsOf(t *testing.T, img *Image, path string) string {
	t.Helper()
	debugfs, err := findTool("debugfs")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), debugfs, "-R", "cat "+path, img.RootFS).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestImport(t *testing.T) {
	s := baseStore(t, true)
	for name, c := range map[string]struct {
		lib     []tar.Header
		modules string // where they are in the end
	}{
		"nothing":          {nil, "/lib/modules"},
		"lib":              {[]tar.Header{{Name: "lib/", Typeflag: tar.TypeDir, Mode: 0o755}}, "/lib/modules"},
		"lib in usr":       {[]tar.Header{{Name: "usr/lib/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "lib", Typeflag: tar.TypeSymlink, Linkname: "usr/lib"}}, "/usr/lib/modules"},
		"lib from the top": {[]tar.Header{{Name: "lib", Typeflag: tar.TypeSymlink, Linkname: "/usr/lib"}, {Name: "usr/lib/", Typeflag: tar.TypeDir, Mode: 0o755}}, "/usr/lib/modules"},
	} {
		t.Run(name, func(t *testing.T) {
			path := archiveOf(t, "PRETTY_NAME='Some System'\n", append(c.lib, tar.Header{Name: "etc/os-release", Typeflag: tar.TypeReg, Mode: 0o644})...)
			img, err := s.Build(t.Context(), "mine", BuildOptions{From: "tar:" + path}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if img.Description != "Some System, Linux 1.2.3" || img.From != "tar:"+path || img.KernelVersion != "1.2.3" || len(img.Modules) != 2 {
				t.Errorf("got %+v", img)
			}
			if got := contentsOf(t, img, c.modules+"/1.2.3/modules.dep"); got != "dependencies" {
				t.Errorf("modules.dep has %q", got)
			}
			base, err := s.Get(Default)
			if err != nil {
				t.Fatal(err)
			}
			for i, file := range append([]string{img.Kernel}, img.Modules...) {
				of := append([]string{base.Kernel}, base.Modules...)[i]
				one, err1 := os.Stat(file)
				other, err2 := os.Stat(of)
				if err := errors.Join(err1, err2); err != nil || !os.SameFile(one, other) {
					t.Errorf("%s and %s are two files: %v", file, of, err)
				}
			}
			again, err := s.Build(t.Context(), "again", BuildOptions{From: "tar:" + path}, nil)
			if err != nil || again.ID != img.ID {
				t.Errorf("the same archive made %+v, %v", again, err)
			}
		})
	}
}

// TestImportLarge has a file of 30 GiB, all hole, and the modules beside it.
func TestImportLarge(t *testing.T) {
	s, dir := baseStore(t, true), t.TempDir()
	file, err := os.Create(filepath.Join(dir, "large"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(file.Truncate(30<<30), file.Close()); err != nil {
		t.Fatal(err)
	}
	img, err := s.Build(t.Context(), "large", BuildOptions{From: "dir:" + dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if img.RootFSSize != 41<<30 {
		t.Errorf("the root filesystem has %d bytes", img.RootFSSize)
	}
}

func TestImportRefuses(t *testing.T) {
	s := baseStore(t, true)
	good := archiveOf(t, "contents", tar.Header{Name: "file", Typeflag: tar.TypeReg, Mode: 0o644})
	if _, err := s.Build(t.Context(), "good", BuildOptions{From: "tar:" + good}, nil); err != nil {
		t.Fatal(err)
	}
	hostile := archiveOf(t, "contents", tar.Header{Name: "../../file", Typeflag: tar.TypeReg, Mode: 0o644})
	for name, c := range map[string]struct {
		opts BuildOptions
		want error
		text string
	}{
		"no kind":       {BuildOptions{From: good}, oci.ErrReference, "say what is there"},
		"other kind":    {BuildOptions{From: "zip:" + good}, oci.ErrReference, "zip:"},
		"no path":       {BuildOptions{From: "tar:"}, oci.ErrReference, "the path is missing"},
		"not there":     {BuildOptions{From: "tar:" + good + "x"}, os.ErrNotExist, "no such file"},
		"file as dir":   {BuildOptions{From: "dir:" + good}, ErrOrigin, "for an archive write tar:" + good},
		"dir as file":   {BuildOptions{From: "tar:/"}, ErrOrigin, "for a directory write dir:/"},
		"file as oci":   {BuildOptions{From: "oci:" + good}, ErrOrigin, "for an archive write oci-archive:" + good},
		"dir as saved":  {BuildOptions{From: "docker-archive:/"}, ErrOrigin, "for a directory write oci:/"},
		"with packages": {BuildOptions{From: "tar:" + good, Packages: []string{"tree"}}, ErrOrigin, "packages"},
		"hostile":       {BuildOptions{From: "tar:" + hostile}, rootfs.ErrLayer, "../../file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Build(t.Context(), "bad", c.opts, nil)
			if !errors.Is(err, c.want) || !errors.Is(err, ErrOrigin) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v", err)
			}
			if _, err := os.Stat(filepath.Join(s.dir, "bad")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("something was left: %v", err)
			}
		})
	}
	if _, err := s.Build(t.Context(), Default, BuildOptions{From: "tar:" + good}, nil); !errors.Is(err, ErrInvalidName) {
		t.Errorf("the default image was made of something else: %v", err)
	}
}

func TestImportWithoutModules(t *testing.T) {
	s := baseStore(t, false)
	good := archiveOf(t, "contents", tar.Header{Name: "file", Typeflag: tar.TypeReg, Mode: 0o644})
	_, err := s.Build(t.Context(), "mine", BuildOptions{From: "tar:" + good}, nil)
	if err == nil || errors.Is(err, ErrOrigin) || !strings.Contains(err.Error(), `copy kernel modules from image "debian"`) {
		t.Errorf("got %v", err)
	}
}

// TestImportImage makes an image of one that is here, which a bare name means first.
func TestImportImage(t *testing.T) {
	s := baseStore(t, true)
	path := archiveOf(t, "contents", tar.Header{Name: "file", Typeflag: tar.TypeReg, Mode: 0o644})
	first, err := s.Build(t.Context(), "first", BuildOptions{From: "tar:" + path}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"first", Default} {
		img, err := s.Build(t.Context(), "second", BuildOptions{From: from}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if img.From != "image:"+from || img.KernelVersion != first.KernelVersion || contentsOf(t, img, "/lib/modules/1.2.3/modules.dep") != "dependencies" {
			t.Errorf("got %+v", img)
		}
		if from == "first" && contentsOf(t, img, "/file") != "contents" {
			t.Error("its file has something else")
		}
		one, err := os.Stat(first.Kernel)
		other, err2 := os.Stat(img.Kernel)
		if err := errors.Join(err, err2); err != nil || !os.SameFile(one, other) {
			t.Errorf("it has a kernel of its own: %v", err)
		}
	}
	if _, err := s.Build(t.Context(), "third", BuildOptions{From: "docker://127.0.0.1:1/first"}, nil); err == nil || errors.Is(err, ErrOrigin) {
		t.Errorf("what is said to be in a registry: %v", err)
	}
}
