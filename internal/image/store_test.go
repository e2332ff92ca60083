package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(helper(role))
	}
	goleak.VerifyTestMain(m)
}

func TestEnsure(t *testing.T) {
	s, builds := fakeStore(t, nil)
	if _, err := s.Get(fakeName); !errors.Is(err, ErrNotFound) {
		t.Fatalf("Get before the build: %v", err)
	}
	var progress []Progress
	img, err := s.Ensure(t.Context(), fakeName, PullMissing, func(p Progress) { progress = append(progress, p) })
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, s, currentLink, lockFile, img.ID)
	if diff := cmp.Diff([]Progress{{Stage: "first", Total: 2}, {Stage: "second", Done: 1, Total: 2}}, progress); diff != "" {
		t.Error(diff)
	}
	dir := filepath.Join(s.dir, fakeName, img.ID)
	want := &Image{
		Name: fakeName, ID: img.ID, Description: "a fake", Created: img.Created, KernelVersion: "1.2.3", Env: []string{"A=b"},
		Dir: dir, Kernel: filepath.Join(dir, "vmlinux"), RootFS: filepath.Join(dir, "rootfs.ext4"), RootFSSize: int64(len("filesystem")),
		Modules: []string{filepath.Join(dir, "modules", "b.ko"), filepath.Join(dir, "modules", "a.ko")},
	}
	if diff := cmp.Diff(want, img); diff != "" {
		t.Error(diff)
	}
	if age := time.Since(img.Created); age < 0 || age > time.Minute {
		t.Errorf("created %v ago", age)
	}
	for path, perm := range map[string]os.FileMode{img.Dir: 0o755, filepath.Dir(img.Modules[0]): 0o755, img.Kernel: 0o444, img.RootFS: 0o444, img.Modules[0]: 0o444} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != perm {
			t.Errorf("%s: mode %v, %v, want %v", path, info.Mode(), err, perm)
		}
	}
	if usage, err := img.Usage(); err != nil || usage.Bytes < 4096 || usage.Shared != 0 {
		t.Errorf("Usage: %+v, %v", usage, err)
	}

	for _, get := range []func() (*Image, error){
		func() (*Image, error) { return s.Get(fakeName) },
		func() (*Image, error) { return s.Ensure(t.Context(), fakeName, PullMissing, nil) },
	} {
		again, err := get()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(img, again); diff != "" {
			t.Error(diff)
		}
	}
	if n := countBuilds(t, builds); n != 1 {
		t.Errorf("built %d times", n)
	}
	list, err := s.List()
	if err != nil || len(list) != 1 || list[0].ID != img.ID || !list[0].Current || list[0].Shared {
		t.Errorf("List: %v, %v", list, err)
	}
}

func TestNames(t *testing.T) {
	s, _ := fakeStore(t, nil)
	for _, name := range []string{"", ".", "..", ".hidden", "../a", "oci", "a.tar", "-a", "a-", "A", "a b", "ä", strings.Repeat("a", maxName+1)} {
		if _, err := s.Get(name); !errors.Is(err, ErrInvalidName) {
			t.Errorf("Get(%q): %v", name, err)
		}
		if _, err := s.Ensure(t.Context(), name, PullMissing, nil); !errors.Is(err, ErrInvalidName) {
			t.Errorf("Ensure(%q): %v", name, err)
		}
	}
	for name, want := range map[string]string{
		"a": "a", "debian": "debian", "debian:latest": "debian:latest", "docker.io/library/debian": "debian:latest",
		"debian-12.1_x": "debian-12.1_x", "web:latest": "web", "python:3.13-alpine": "python:3.13-alpine", "a/b": "a/b",
		"docker://docker.io/library/web:1": "web:1", "localhost:5000/a/b:1": "localhost:5000/a/b:1",
		"ghcr.io/x/y:T-1": "ghcr.io/x/y:T-1", strings.Repeat("a", maxName): strings.Repeat("a", maxName),
	} {
		got, err := ParseName(name)
		if err != nil || got != want {
			t.Errorf("%q is %q, %v", name, got, err)
		}
		if back, err := nameOfDir(dirName(got)); err != nil || back != got {
			t.Errorf("%q is kept as %q, %v", got, back, err)
		}
	}
	if _, err := s.Get("dir:a"); !errors.Is(err, ErrInvalidName) {
		t.Errorf("Get of a place: %v", err)
	}
	for _, dir := range []string{".blobs", "a%2", "%61", "web:latest", "a%2fb"} {
		if name, err := nameOfDir(dir); err == nil {
			t.Errorf("%q is kept of %q", dir, name)
		}
	}
	if _, err := s.Ensure(t.Context(), "unknown", PullNever, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("Ensure of what can't be built: %v", err)
	}
	if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused name left something: %v", err)
	}
}

func TestShared(t *testing.T) {
	other, _ := fakeStore(t, nil)
	shared, err := other.Ensure(t.Context(), fakeName, PullMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, builds := fakeStore(t, nil)
	s.shared = []string{filepath.Join(t.TempDir(), "absent"), other.dir}
	img, err := s.Ensure(t.Context(), fakeName, PullMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	if shared.Shared || !img.Shared {
		t.Errorf("shared: %v in its own store, %v in another", shared.Shared, img.Shared)
	}
	shared.Shared = true
	if diff := cmp.Diff(shared, img); diff != "" {
		t.Error(diff)
	}
	path, err := s.Initrd(t.Context(), img, guestProgram("guest"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(path, s.dir+"/") {
		t.Errorf("initrd of a shared image is at %s", path)
	}
	if list, err := s.List(); err != nil || len(list) != 1 || list[0].Dir != shared.Dir || !list[0].Current || !list[0].Shared {
		t.Errorf("List: %v, %v", list, err)
	}
	if n := countBuilds(t, builds); n != 0 {
		t.Errorf("built %d times what another store has", n)
	}
}

func TestFailedBuild(t *testing.T) {
	failure := errors.New("disk on fire")
	fail := true
	s, builds := fakeStore(t, func(context.Context, *Job) error {
		if fail {
			return failure
		}
		return nil
	})
	if _, err := s.Ensure(t.Context(), fakeName, PullMissing, nil); !errors.Is(err, failure) {
		t.Fatalf("got %v", err)
	}
	wantFiles(t, s)
	fail = false
	if _, err := s.Ensure(t.Context(), fakeName, PullMissing, nil); err != nil {
		t.Fatal(err)
	}
	if n := countBuilds(t, builds); n != 2 {
		t.Errorf("built %d times", n)
	}
}

func TestAdopt(t *testing.T) {
	s, builds := fakeStore(t, nil)
	img, err := s.Ensure(t.Context(), fakeName, PullMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	// As if the process had died between the rename and the link.
	home := filepath.Join(s.dir, fakeName)
	if err := os.Rename(filepath.Join(home, currentLink), filepath.Join(home, buildPrefix+currentLink)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(fakeName); !errors.Is(err, ErrNotFound) {
		t.Fatalf("Get without a link: %v", err)
	}
	again, err := s.Ensure(t.Context(), fakeName, PullMissing, nil)
	if err != nil || again.ID != img.ID || countBuilds(t, builds) != 1 {
		t.Errorf("got %v, %v after %d builds", again, err, countBuilds(t, builds))
	}
	wantFiles(t, s, currentLink, lockFile, img.ID)
}

// TestDamaged takes away, one at a time, what an image consists of.
func TestDamaged(t *testing.T) {
	for _, file := range []string{kernelFile, rootFSFile, modulesDir + "/a.ko", manifestFile, ""} {
		s, builds := fakeStore(t, nil)
		img, err := s.Ensure(t.Context(), fakeName, PullMissing, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(img.Dir, file)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(fakeName); !errors.Is(err, ErrNotFound) {
			t.Errorf("Get without %q: %v", file, err)
		}
		if _, err := s.Ensure(t.Context(), fakeName, PullMissing, nil); err != nil {
			t.Errorf("Ensure without %q: %v", file, err)
		}
		if n := countBuilds(t, builds); n != 2 {
			t.Errorf("without %q: built %d times", file, n)
		}
	}
}

func TestBadRecord(t *testing.T) {
	s, _ := fakeStore(t, nil)
	img, err := s.Ensure(t.Context(), fakeName, PullMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(img.Dir, manifestFile)
	for _, text := range []string{"{", `{"id":"` + img.ID + `","modules":["../../x"]}`} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(fakeName); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("record %q: %v", text, err)
		}
		if list, err := s.List(); err != nil || len(list) != 1 || list[0].Err == nil || list[0].ID != img.ID {
			t.Errorf("record %q: listed as %+v, %v", text, list, err)
		}
	}
}

func guestProgram(contents string) *io.SectionReader {
	return io.NewSectionReader(strings.NewReader(contents), 0, int64(len(contents)))
}

// A program of Go's is known by its build ID, any other by all of its contents.
func TestInitrdKey(t *testing.T) {
	own, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(own, buildID(guestProgram(string(own))))
	if i <= 0 {
		t.Fatal("this very program has no build ID")
	}
	img := &Image{ID: "id"}
	seen := map[string]string{}
	for name, contents := range map[string]string{
		"Go": string(own), "another build": string(own[:i+20]) + "x" + string(own[i+21:]), "longer": string(own) + "x",
		"not Go": string(own[:64]), "not Go either": string(own[:63]) + "x", "text": "text",
	} {
		key, err := initrdKey(img, guestProgram(contents))
		if err != nil {
			t.Fatal(err)
		}
		if other, taken := seen[key]; taken {
			t.Errorf("%s and %s have the same key", name, other)
		}
		seen[key] = name
	}
	again, err := initrdKey(img, guestProgram(string(own)))
	if err != nil || seen[again] != "Go" {
		t.Errorf("asked again: %s, %v", again, err)
	}
	if other, err := initrdKey(&Image{ID: "other"}, guestProgram(string(own))); err != nil || seen[other] != "" {
		t.Errorf("another image: %s, %v", other, err)
	}
}

func TestInitrd(t *testing.T) {
	s, _ := fakeStore(t, nil)
	img, err := s.Ensure(t.Context(), fakeName, PullMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	path, err := s.Initrd(t.Context(), img, guestProgram("guest program"))
	if err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"init\x00", "guest program", "modules/a.ko\x00", "module b", "/modules/b.ko\n/modules/a.ko\n", "TRAILER!!!"} {
		if !bytes.Contains(archive, []byte(part)) {
			t.Errorf("%q is not in the archive", part)
		}
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	again, err := s.Initrd(t.Context(), img, guestProgram("guest program"))
	if err != nil || again != path {
		t.Errorf("second call: %s, %v", again, err)
	}
	info, err := os.Stat(path)
	if err != nil || !info.ModTime().After(old) {
		t.Errorf("a used initrd counts as unused: %v, %v", info.ModTime(), err)
	}
	// It has become old, and a new guest program comes.
	old = time.Now().Add(-2 * initrdUnused)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	debris := filepath.Join(filepath.Dir(path), ".x.cpio123")
	if err := os.WriteFile(debris, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := s.Initrd(t.Context(), img, guestProgram("other program"))
	if err != nil || other == path {
		t.Errorf("another program: %s, %v", other, err)
	}
	for _, gone := range []string{path, debris} {
		if _, err := os.Stat(gone); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
	if _, err := s.Initrd(t.Context(), img, guestProgram("")); err == nil {
		t.Error("an initrd without a guest program was made")
	}
}
