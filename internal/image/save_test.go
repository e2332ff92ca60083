package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/oci"
	"github.com/smolvm/smolvm/internal/oci/registrytest"
)

// savable returns a store with an image of a VM's disk in it.
func savable(t *testing.T) (*Store, *Image) {
	t.Helper()
	s := baseStore(t, true)
	base, err := s.Ensure(t.Context(), Default, PullMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	img, err := s.Commit(t.Context(), "team/web:1", diskOf(t, base, identity(t)), CommitOptions{Changes: []string{
		`CMD ["a", "b"]`, "ENV A=1 PATH=/bin", "EXPOSE 80", "LABEL l=v", "USER 1000", "WORKDIR /srv", "STOPSIGNAL SIGINT",
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s, img
}

// wantCopy checks that an image has the files of another, and says the same.
func wantCopy(t *testing.T, got, want *Image) {
	t.Helper()
	wantConfig, gotConfig := want.Config, got.Config
	wantConfig.Env = lastOfEach(want.Env)
	gotConfig.Created = wantConfig.Created
	if !reflect.DeepEqual(gotConfig, wantConfig) || got.KernelVersion != want.KernelVersion {
		t.Errorf("it says %+v, not %+v", gotConfig, wantConfig)
	}
	archive := func(img *Image) []byte {
		var b bytes.Buffer
		tree := nodesOf(t, img)
		// Modules are put into images, with times of their own.
		if err := errors.Join(removeModules(tree, img.KernelVersion), tree.Remove("lib"), tree.WriteTar(t.Context(), &b)); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	if !bytes.Equal(archive(got), archive(want)) {
		t.Error("it has other files")
	}
	if data, err := nodesOf(t, got).ReadFile(t.Context(), "lib/modules/1.2.3/modules.dep"); err != nil || string(data) != "dependencies" {
		t.Errorf("its modules are %q, %v", data, err)
	}
}

// What is saved, and loaded in another place, is the same image, whatever the format.
func TestSaveAndLoad(t *testing.T) {
	s, img := savable(t)
	for _, format := range []SaveFormat{SaveOCI, SaveDocker} {
		var saved, again bytes.Buffer
		if err := errors.Join(s.Save(t.Context(), img.Name, &saved, format, nil), s.Save(t.Context(), img.Name, &again, format, nil)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(saved.Bytes(), again.Bytes()) {
			t.Errorf("%s: it is another archive each time", format)
		}
		other, path := baseStore(t, true), filepath.Join(t.TempDir(), "image: saved.tar")
		if err := os.WriteFile(path, saved.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		fromFile, err := other.Load(t.Context(), file, nil)
		if err := file.Close(); err != nil {
			t.Error(err)
		}
		if err != nil || len(fromFile) != 1 || fromFile[0].Name != img.Name || !strings.Contains(fromFile[0].From, path) {
			t.Fatalf("%s: loaded %+v, %v", format, fromFile, err)
		}
		wantCopy(t, fromFile[0], img)
		fromStream, err := other.Load(t.Context(), &saved, nil)
		if err != nil || len(fromStream) != 1 || fromStream[0].Name != img.Name || strings.Contains(fromStream[0].From, "/proc") {
			t.Fatalf("%s: loaded %+v, %v", format, fromStream, err)
		}
		wantCopy(t, fromStream[0], img)
		wantNoScratch(t, s)
		wantNoScratch(t, other)
		if versions, err := other.List(); err != nil || len(versions) != 3 { // and the default
			t.Errorf("%s: there are %d versions, %v", format, len(versions), err)
		}
	}
	if err := s.Save(t.Context(), img.Name, io.Discard, "zip", nil); !errors.Is(err, ErrFormat) {
		t.Errorf("another format: %v", err)
	}
	if err := s.Save(t.Context(), "nosuch", io.Discard, SaveOCI, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("no image: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := s.Save(ctx, img.Name, io.Discard, SaveOCI, func(Progress) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	wantNoScratch(t, s)
	r, w := io.Pipe()
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Load(ctx, r, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stream that does not end: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	for what, r := range map[string]io.Reader{"nothing": strings.NewReader(""), "text": strings.NewReader(strings.Repeat("text ", 1000))} {
		if got, err := s.Load(t.Context(), r, nil); !errors.Is(err, ErrOrigin) || len(got) > 0 {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
}

// wantNoScratch checks that nothing is left of what passed through a store.
func wantNoScratch(t *testing.T, s *Store) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(s.dir, registryBlobs, "partial", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

// What is pushed can be pulled, and is the same image.
func TestPush(t *testing.T) {
	registry, err := registrytest.New(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = registry.Kill() })
	s, img := savable(t)
	to := "docker://" + registry.Addr + "/team/app:v1"
	digest, err := s.Push(t.Context(), img.Name, to, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := baseStore(t, true).Ensure(t.Context(), to, PullAlways, nil)
	if err != nil || got.Digest != digest {
		t.Fatalf("got %+v, not %s, %v", got, digest, err)
	}
	wantCopy(t, got, img)
	for bad, want := range map[string]error{"oci:x": ErrOrigin, "UPPER": ErrOrigin} {
		if _, err := s.Push(t.Context(), img.Name, bad, nil); !errors.Is(err, want) {
			t.Errorf("to %s: %v", bad, err)
		}
	}
	if _, err := s.Push(t.Context(), img.Name, "docker://127.0.0.1:1/a:b", func(Progress) {}); err == nil || errors.Is(err, oci.ErrNotFound) {
		t.Errorf("where nothing listens: %v", err)
	}
	wantNoScratch(t, s)
}
