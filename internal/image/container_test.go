package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/smolvm/smolvm/internal/diskusage"
	"github.com/smolvm/smolvm/internal/oci"
	"github.com/smolvm/smolvm/internal/oci/registrytest"
)

// layerOf returns a layer of one file.
func layerOf(t *testing.T, name, contents string) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(contents))})
	if err == nil {
		_, err = io.WriteString(w, contents)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// containerOf returns a container image for amd64 of these layers.
func containerOf(t *testing.T, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	about, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	about = about.DeepCopy()
	about.OS, about.Architecture = "linux", "amd64"
	about.Config = v1.Config{
		Env: []string{"A=b"}, Entrypoint: []string{"/entry"}, Cmd: []string{"a", "b"}, WorkingDir: "work/../here", User: "me:us",
		ExposedPorts: map[string]struct{}{"80/tcp": {}}, StopSignal: "SIGQUIT", Labels: map[string]string{"k": "v"},
	}
	if img, err = mutate.ConfigFile(img, about); err != nil {
		t.Fatal(err)
	}
	return img
}

// startRegistry starts a registry, whose images are named by what it returns and a slash.
func startRegistry(t *testing.T) *registrytest.Server {
	t.Helper()
	s, err := registrytest.New(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Kill() })
	return s
}

func push(t *testing.T, r *registrytest.Server, name string, img v1.Image) (digest string) {
	t.Helper()
	hash, err := img.Digest()
	if err = errors.Join(err, r.Push(name, img)); err != nil {
		t.Fatal(err)
	}
	return hash.String()
}

func TestPull(t *testing.T) {
	s, r := baseStore(t, true), startRegistry(t)
	shared := layerOf(t, "etc/shared", "below")
	first := push(t, r, "team/app:1", containerOf(t, shared, layerOf(t, "etc/version", "one")))
	name := r.Addr + "/team/app:1"

	if _, err := s.Ensure(t.Context(), name, PullNever, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("without asking a registry: %v", err)
	}
	var fetched []string
	img, err := s.Ensure(t.Context(), name, PullMissing, func(p Progress) {
		if p.Stage == stageFetch {
			for _, l := range p.Layers {
				if l.State == oci.Done && !strings.Contains(strings.Join(fetched, " "), l.Digest) {
					fetched = append(fetched, l.Digest)
				}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if img.Name != name || img.Digest != first || img.From != "docker://"+name || contentsOf(t, img, "/etc/version") != "one" || len(fetched) != 2 {
		t.Errorf("got %+v; fetched %q", img, fetched)
	}
	want := Config{
		Env: []string{"A=b"}, Entrypoint: []string{"/entry"}, Cmd: []string{"a", "b"}, WorkingDir: "/here", User: "me:us",
		ExposedPorts: []string{"80/tcp"}, StopSignal: "SIGQUIT", Labels: map[string]string{"k": "v"},
	}
	if diff := cmp.Diff(want, img.Config) + cmp.Diff([]string{standardPath, "A=b"}, img.Env); diff != "" {
		t.Error(diff)
	}

	// The tag moves. Who asks only for what is missing keeps what there is.
	second := push(t, r, "team/app:1", containerOf(t, shared, layerOf(t, "etc/version", "two")))
	if again, err := s.Ensure(t.Context(), name, PullMissing, nil); err != nil || again.ID != img.ID {
		t.Errorf("got %v, %v", again, err)
	}
	cached := 0
	moved, err := s.Ensure(t.Context(), name, PullAlways, func(p Progress) {
		cached = 0
		for _, l := range p.Layers {
			if l.State == oci.Cached {
				cached++
			}
		}
	})
	if err != nil || moved.Digest != second || contentsOf(t, moved, "/etc/version") != "two" {
		t.Fatalf("got %v, %v", moved, err)
	}
	if _, err := s.Find(name, img.ID); err != nil {
		t.Errorf("the one before is gone: %v", err)
	}
	if same, err := s.Ensure(t.Context(), name, PullAlways, nil); err != nil || same.ID != moved.ID || same.Created != moved.Created {
		t.Errorf("what is as it was: %v, %v", same, err)
	}

	// By digest, and under the name of an image that is not from there.
	if pinned, err := s.Ensure(t.Context(), r.Addr+"/team/app@"+first, PullMissing, nil); err != nil || contentsOf(t, pinned, "/etc/version") != "one" {
		t.Errorf("got %v, %v", pinned, err)
	}
	dir := t.TempDir()
	if _, err := s.Build(t.Context(), r.Addr+"/team/app:2", BuildOptions{From: "dir:" + dir}, nil); err != nil {
		t.Fatal(err)
	}
	if own, err := s.Ensure(t.Context(), r.Addr+"/team/app:2", PullAlways, nil); err != nil || own.From != "dir:"+dir {
		t.Errorf("got %v, %v", own, err)
	}
	push(t, r, "team/app:2", containerOf(t, shared))
	if other, err := s.Ensure(t.Context(), "docker://"+r.Addr+"/team/app:2", PullMissing, nil); err != nil || other.From != "docker://"+r.Addr+"/team/app:2" {
		t.Errorf("got %v, %v", other, err)
	}

	// What is there needs no registry, but to be asked for what is new.
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	if again, err := s.Ensure(t.Context(), name, PullMissing, nil); err != nil || again.ID != moved.ID {
		t.Errorf("got %v, %v", again, err)
	}
	if _, err := s.Ensure(t.Context(), name, PullAlways, nil); err == nil || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "ask for image") {
		t.Errorf("got %v", err)
	}
	if _, err := s.Ensure(t.Context(), r.Addr+"/team/other", PullMissing, nil); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "speak to "+r.Addr) {
		t.Errorf("got %v", err)
	}

	// What was fetched is kept, until it is cleaned away.
	left, err := s.cleanBlobs(t.Context(), true)
	if err != nil || len(left) != 1 || left[0].Path != registryBlobs || left[0].Bytes == 0 {
		t.Fatalf("got %+v, %v", left, err)
	}
	if removed, err := s.cleanBlobs(t.Context(), false); err != nil || !cmp.Equal(left, removed) {
		t.Errorf("got %+v, %v", removed, err)
	}
	if left, err := s.cleanBlobs(t.Context(), true); err != nil || left != nil {
		t.Errorf("got %+v, %v", left, err)
	}
}

// TestPullDamaged has what was fetched damaged on disk before it is used again.
func TestPullDamaged(t *testing.T) {
	s, r := baseStore(t, true), startRegistry(t)
	large := strings.Repeat("contents", 1<<16)
	push(t, r, "app:1", containerOf(t, layerOf(t, "file", large)))
	push(t, r, "app:2", containerOf(t, layerOf(t, "file", large)))
	if _, err := s.Ensure(t.Context(), r.Addr+"/app:1", PullMissing, nil); err != nil {
		t.Fatal(err)
	}
	damaged := 0
	blobs, err := filepath.Glob(filepath.Join(s.dir, registryBlobs, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range blobs {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
		damaged++
	}
	if damaged != 3 {
		t.Fatalf("%d blobs: %q", damaged, blobs)
	}
	img, err := s.Ensure(t.Context(), r.Addr+"/app:2", PullMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	if contentsOf(t, img, "/file") != large {
		t.Error("it has other contents")
	}
}

// TestPullAtOnce has several ask for the same image.
func TestPullAtOnce(t *testing.T) {
	s, r := baseStore(t, true), startRegistry(t)
	push(t, r, "app:1", containerOf(t, layerOf(t, "file", "contents")))
	ids := make([]string, 4)
	var all sync.WaitGroup
	for i := range ids {
		all.Go(func() {
			img, release, err := s.Acquire(t.Context(), r.Addr+"/app:1", PullMissing, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer release()
			ids[i] = img.ID
		})
	}
	all.Wait()
	versions, err := s.List()
	if err != nil || len(versions) != 2 { // with the one that has the kernel
		t.Fatalf("got %+v, %v", versions, err)
	}
	for _, id := range ids {
		if id != ids[0] || id == "" {
			t.Errorf("got %q", ids)
		}
	}
	usage, err := versions[0].Usage()
	both, err2 := diskusage.Measure(versions[0].Dir, versions[1].Dir)
	if err := errors.Join(err, err2); err != nil || usage.Shared == 0 || both.Shared != 0 {
		t.Errorf("one has %+v, both have %+v, %v", usage, both, err)
	}
}

func TestContainersInFiles(t *testing.T) {
	s, dir := baseStore(t, true), t.TempDir()
	img := containerOf(t, layerOf(t, "file", "contents"))
	path, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"})); err != nil {
		t.Fatal(err)
	}
	for from, name := range map[string]string{
		"oci:" + dir + "/layout":        "layout",
		"oci:" + dir + "/layout:latest": "layout",
	} {
		got, err := s.Ensure(t.Context(), from, PullMissing, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got.Name != name || got.From != from || contentsOf(t, got, "/file") != "contents" {
			t.Errorf("got %+v", got)
		}
	}
	if _, err := os.Stat(filepath.Join(s.dir, registryBlobs)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is in files was kept as what comes from registries is: %v", err)
	}
	if _, err := s.Ensure(t.Context(), "oci:"+dir+"/layout:other", PullMissing, nil); !errors.Is(err, ErrOrigin) || !strings.Contains(err.Error(), "it has: latest") {
		t.Errorf("got %v", err)
	}
}
