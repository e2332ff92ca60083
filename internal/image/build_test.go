package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// variant returns a change of a fake image that makes it another one: text is what its
// filesystem has.
func variant(text *string) func(context.Context, *Job) error {
	return func(_ context.Context, job *Job) error {
		return os.WriteFile(filepath.Join(job.Dir, rootFSFile), []byte(*text), 0o600)
	}
}

func build(t *testing.T, s *Store, name string, packages ...string) *Image {
	t.Helper()
	img, err := s.Build(t.Context(), name, BuildOptions{Packages: packages}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// wantVersions checks the IDs of what List tells; the first is the current one.
func wantVersions(t *testing.T, s *Store, want ...*Image) {
	t.Helper()
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var got, wanted []string
	for i, v := range list {
		got = append(got, v.Name+"/"+v.ID)
		if v.Current != (i == 0 || v.Name != list[i-1].Name) {
			t.Errorf("version %d of %d: current: %v", i, len(list), v.Current)
		}
	}
	for _, img := range want {
		wanted = append(wanted, img.Name+"/"+img.ID)
	}
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Error(diff)
	}
}

// TestBuild builds an image anew: the name means the new one, and who uses the old one finds it.
func TestBuild(t *testing.T) {
	text := "one"
	s, _ := fakeStore(t, variant(&text))
	one, err := s.Ensure(t.Context(), fakeName, PullMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	text = "two"
	var progress []Progress
	two, err := s.Build(t.Context(), fakeName, BuildOptions{Packages: []string{"tree", "g++", "tree"}}, func(p Progress) { progress = append(progress, p) })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Progress{{Stage: "first", Total: 2}, {Stage: "second", Done: 1, Total: 2}}, progress); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"g++", "tree"}, two.Packages); diff != "" {
		t.Error(diff)
	}
	if now, err := s.Ensure(t.Context(), fakeName, PullMissing, nil); err != nil || now.ID != two.ID || one.ID == two.ID {
		t.Errorf("the name means %v, %v, want %s", now, err, two.ID)
	}
	if old, err := s.Find(fakeName, one.ID); err != nil {
		t.Errorf("the old version is gone: %v", err)
	} else if diff := cmp.Diff(one, old); diff != "" {
		t.Error(diff)
	}
	wantVersions(t, s, two, one)
	wantFiles(t, s, currentLink, lockFile, one.ID, two.ID)

	// The same again is the same image, and stays where it is: disks are open that are made on it.
	before, err := os.Stat(two.RootFS)
	if err != nil {
		t.Fatal(err)
	}
	again := build(t, s, fakeName, "g++", "tree")
	after, err := os.Stat(two.RootFS)
	if err != nil || again.ID != two.ID || !os.SameFile(before, after) {
		t.Errorf("built again: %s, %v; same file: %v", again.ID, err, os.SameFile(before, after))
	}
	// What was asked for tells images apart.
	if other := build(t, s, "other", "tree"); other.ID == two.ID {
		t.Error("an image with other packages has the same ID")
	}
	if _, err := s.Ensure(t.Context(), "another", PullNever, nil); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "no registry is to be asked") {
		t.Errorf("Ensure of what is never built by itself: %v", err)
	}
}

func TestBuildFails(t *testing.T) {
	failure := errors.New("disk on fire")
	s, _ := fakeStore(t, func(context.Context, *Job) error { return failure })
	if _, err := s.Build(t.Context(), "mine", BuildOptions{}, nil); !errors.Is(err, failure) {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"", "a", "-y", "tree-+;", "Tree", "a b", "a,b", "?essential", "~n", "/tmp/x.deb", "tree/sid", "tree=1", "tree\n", strings.Repeat("a", maxPackageName+1)} {
		if _, err := s.Build(t.Context(), "mine", BuildOptions{Packages: []string{"tree", bad}}, nil); !errors.Is(err, ErrPackage) {
			t.Errorf("package %q: %v", bad, err)
		}
	}
	many := make([]string, maxPackages+1)
	for i := range many {
		many[i] = "p" + strings.Repeat("a", i%90+1) + strings.Repeat("b", i/90+1)
	}
	if _, err := s.Build(t.Context(), "mine", BuildOptions{Packages: many}, nil); !errors.Is(err, ErrPackage) {
		t.Errorf("%d packages: %v", len(many), err)
	}
	if _, err := s.Build(t.Context(), "../mine", BuildOptions{}, nil); !errors.Is(err, ErrInvalidName) {
		t.Errorf("invalid name: %v", err)
	}
	if entries, err := os.ReadDir(s.dir); err != nil || len(entries) != 0 {
		t.Errorf("remains: %v, %v", entries, err)
	}
}

// TestWaitForRemovedHome makes sure that a name whose directory is removed by who had it is taken anew by
// who waited for it.
func TestWaitForRemovedHome(t *testing.T) {
	s, _ := fakeStore(t, nil)
	first, err := s.enter(t.Context(), fakeName, nil)
	if err != nil {
		t.Fatal(err)
	}
	waits := make(chan struct{}, 1)
	done := make(chan error)
	go func() {
		second, err := s.enter(context.Background(), fakeName, func() {
			select {
			case waits <- struct{}{}:
			default:
			}
		})
		if err == nil {
			if !isAt(second.lock, filepath.Join(second.dir, lockFile)) {
				err = errors.New("the lock is not at its path: others could take another one")
			}
			second.leave()
		}
		done <- err
	}()
	<-waits
	first.leave()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(s.dir); err != nil || len(entries) != 0 {
		t.Errorf("remains: %v, %v", entries, err)
	}
}
