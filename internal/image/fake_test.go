package image

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeSource makes a tiny image. It writes a byte to a file each time that it does.
type fakeSource struct {
	builds string
	// run is called after the files are written, if it is not nil.
	run func(ctx context.Context, job *Job) error
}

func (f *fakeSource) Build(ctx context.Context, job *Job) (Manifest, error) {
	job.Stage("first", 2)
	count, err := os.OpenFile(f.builds, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return Manifest{}, err
	}
	if _, err := count.WriteString("x"); err != nil {
		return Manifest{}, err
	}
	if err := count.Close(); err != nil {
		return Manifest{}, err
	}
	if err := os.Mkdir(filepath.Join(job.Dir, modulesDir), 0o700); err != nil {
		return Manifest{}, err
	}
	for name, data := range map[string]string{
		kernelFile: "kernel", rootFSFile: "filesystem", modulesDir + "/b.ko": "module b", modulesDir + "/a.ko": "module a",
		"left over": "garbage",
	} {
		if err := os.WriteFile(filepath.Join(job.Dir, name), []byte(data), 0o600); err != nil {
			return Manifest{}, err
		}
	}
	if f.run != nil {
		if err := f.run(ctx, job); err != nil {
			return Manifest{}, err
		}
	}
	job.Stage("second", 2)
	return Manifest{Description: "a fake", KernelVersion: "1.2.3", Env: []string{"A=b"}, Modules: []string{"b.ko", "a.ko"}}, nil
}

// fakeName is the name that the fake image is built under when it is needed.
const fakeName = Default

// fakeStore returns a store in a new directory that can build one image, and the path of
// the file that counts builds.
func fakeStore(t *testing.T, run func(context.Context, *Job) error) (s *Store, builds string) {
	t.Helper()
	dir := t.TempDir()
	return newFakeStore(filepath.Join(dir, "images"), filepath.Join(dir, "builds"), run), filepath.Join(dir, "builds")
}

func newFakeStore(dir, builds string, run func(context.Context, *Job) error) *Store {
	s := NewStore(Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	s.kernelPackage = func() string { return "" }
	s.source = &fakeSource{builds: builds, run: run}
	return s
}

func countBuilds(t *testing.T, builds string) int {
	t.Helper()
	data, err := os.ReadFile(builds)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return len(data)
}

// wantFiles checks what is in the directory of the fake image's name: nothing, if that is gone.
func wantFiles(t *testing.T, s *Store, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.dir, fakeName))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("files of the store: " + diff)
	}
}
