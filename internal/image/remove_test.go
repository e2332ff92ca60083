package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func chooseAll(versions []Version) ([]Version, error) { return versions, nil }

// choose returns a function that chooses the images.
func choose(images ...*Image) func([]Version) ([]Version, error) {
	return func(versions []Version) (chosen []Version, _ error) {
		for _, v := range versions {
			for _, img := range images {
				if v.ID == img.ID {
					chosen = append(chosen, v)
				}
			}
		}
		return chosen, nil
	}
}

// threeVersions builds three versions of the fake image, the oldest first.
func threeVersions(t *testing.T) (*Store, [3]*Image) {
	t.Helper()
	text := ""
	s, _ := fakeStore(t, variant(&text))
	var images [3]*Image
	for i := range images {
		text += "x"
		images[i] = build(t, s, fakeName)
		// Their times are told apart only by seconds.
		age(t, images[i], time.Duration(len(images)-i)*time.Hour)
	}
	return s, images
}

// age makes an image older.
func age(t *testing.T, img *Image, by time.Duration) {
	t.Helper()
	path := filepath.Join(img.Dir, manifestFile)
	img.Created = img.Created.Add(-by)
	rec := record{ID: img.ID, Created: img.Created, Manifest: Manifest{
		Description: img.Description, KernelVersion: img.KernelVersion, Env: img.Env, Modules: []string{"b.ko", "a.ko"},
	}}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := writeRecord(img.Dir, rec); err != nil {
		t.Fatal(err)
	}
}

func TestRemove(t *testing.T) {
	s, images := threeVersions(t)
	wantVersions(t, s, images[2], images[1], images[0])
	refused := errors.New("not now")
	if err := s.Remove(t.Context(), fakeName, func([]Version) ([]Version, error) { return nil, refused }); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	wantVersions(t, s, images[2], images[1], images[0])
	// An old one goes, and the name means the same.
	if err := s.Remove(t.Context(), fakeName, choose(images[1])); err != nil {
		t.Fatal(err)
	}
	wantVersions(t, s, images[2], images[0])
	// The current one goes, and the name means what is left.
	if err := s.Remove(t.Context(), fakeName, func(versions []Version) ([]Version, error) {
		if !versions[0].Current || versions[1].Current {
			t.Errorf("current: %v, %v", versions[0].Current, versions[1].Current)
		}
		return choose(images[2])(versions)
	}); err != nil {
		t.Fatal(err)
	}
	wantVersions(t, s, images[0])
	wantFiles(t, s, currentLink, lockFile, images[0].ID)
	if err := s.Remove(t.Context(), fakeName, chooseAll); err != nil {
		t.Fatal(err)
	}
	wantVersions(t, s)
	if _, err := os.Stat(filepath.Join(s.dir, fakeName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of the name remains: %v", err)
	}
	for name, want := range map[string]error{fakeName: ErrNotFound, "../x": ErrInvalidName} {
		if err := s.Remove(t.Context(), name, chooseAll); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRemoveDamaged removes what is no image any more.
func TestRemoveDamaged(t *testing.T) {
	s, images := threeVersions(t)
	if err := os.Remove(images[2].Kernel); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), fakeName, choose(images[2])); err != nil {
		t.Fatal(err)
	}
	wantVersions(t, s, images[1], images[0])
}

// TestRemoveNotShared shows that another store's image cannot be removed here.
func TestRemoveNotShared(t *testing.T) {
	other, _ := fakeStore(t, nil)
	img := build(t, other, fakeName)
	s, _ := fakeStore(t, nil)
	s.shared = []string{other.dir}
	if err := s.Remove(t.Context(), fakeName, chooseAll); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if _, err := other.Find(fakeName, img.ID); err != nil {
		t.Error(err)
	}
	// A version of its own hides the shared one until it is removed.
	text := "own"
	s.source = &fakeSource{builds: filepath.Join(t.TempDir(), "builds"), run: variant(&text)}
	own := build(t, s, fakeName)
	img.Shared = true
	wantVersions(t, s, own, img)
	if err := s.Remove(t.Context(), fakeName, func(versions []Version) ([]Version, error) {
		if len(versions) != 1 || versions[0].ID != own.ID {
			t.Errorf("offered for removal: %+v", versions)
		}
		return versions, nil
	}); err != nil {
		t.Fatal(err)
	}
	wantVersions(t, s, img)
}

// TestAcquire shows that who begins to use an image and who removes it exclude each other.
func TestAcquire(t *testing.T) {
	s, images := threeVersions(t)
	img, release, err := s.Acquire(t.Context(), fakeName, PullMissing, nil)
	if err != nil || img.ID != images[2].ID {
		t.Fatalf("got %v, %v", img, err)
	}
	_, releaseToo, err := s.Acquire(t.Context(), fakeName, PullMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	releaseToo()
	short, cancel := context.WithTimeout(t.Context(), 3*lockRetry)
	defer cancel()
	asked := func([]Version) ([]Version, error) { return nil, errors.New("somebody is about to use it") }
	if err := s.Remove(short, fakeName, asked); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Remove while one is acquired: %v", err)
	}
	wantVersions(t, s, images[2], images[1], images[0])

	// Who comes while a removal decides gets the next one, not the doomed one.
	release()
	removing, decide := make(chan struct{}), make(chan struct{})
	removed := make(chan error)
	go func() {
		removed <- s.Remove(context.Background(), fakeName, func(versions []Version) ([]Version, error) {
			close(removing)
			<-decide
			return choose(images[2])(versions)
		})
	}()
	<-removing
	short, cancel = context.WithTimeout(t.Context(), 3*lockRetry)
	defer cancel()
	if _, _, err := s.Acquire(short, fakeName, PullMissing, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Acquire during a removal: %v", err)
	}
	acquired := make(chan string)
	go func() {
		img, release, err := s.Acquire(context.Background(), fakeName, PullMissing, nil)
		if err != nil {
			acquired <- err.Error()
			return
		}
		release()
		acquired <- img.ID
	}()
	close(decide)
	if err := <-removed; err != nil {
		t.Error(err)
	}
	if got := <-acquired; got != images[1].ID {
		t.Errorf("acquired %s, want %s", got, images[1].ID)
	}
	if _, _, err := s.Acquire(t.Context(), "unknown", PullMissing, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// TestInUse opens an image as a VM that runs does.
func TestInUse(t *testing.T) {
	s, _ := fakeStore(t, nil)
	img := build(t, s, fakeName)
	if img.InUse() {
		t.Fatal("an image that nobody has open is in use")
	}
	file, err := os.Open(img.RootFS)
	if err != nil {
		t.Fatal(err)
	}
	if !img.InUse() {
		t.Error("an image that is open is not in use")
	}
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	if img.InUse() {
		t.Error("an image that is open no more is in use")
	}
}

// TestKilledRemoval is what a removal leaves that was killed: the version is gone, and its remains
// go with the next one.
func TestKilledRemoval(t *testing.T) {
	s, images := threeVersions(t)
	h, err := s.enter(t.Context(), fakeName, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.hide(versions(fakeName, h.dir), []Version{{Image: images[2]}}); err != nil {
		t.Fatal(err)
	}
	h.leave()
	wantVersions(t, s, images[1], images[0])
	if debris, err := filepath.Glob(filepath.Join(s.dir, fakeName, buildPrefix+"*", images[2].ID)); err != nil || len(debris) != 1 {
		t.Fatalf("nothing was left, the test tests nothing: %q, %v", debris, err)
	}
	if err := s.Remove(t.Context(), fakeName, choose()); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, s, currentLink, lockFile, images[0].ID, images[1].ID)
}
