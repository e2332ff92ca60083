package oci

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/smolvm/smolvm/internal/oci/blob"
)

func TestPull(t *testing.T) {
	s := startServer(t, "")
	layers := []v1.Layer{layer(t, 1, 100_000), layer(t, 2, 200_000, zstdLayer()...), layer(t, 3, 10)}
	layers = append(layers, layers[2])
	image := imageOf(t, "linux/amd64", layers...)
	s.push(t, "team/app:v1", image)
	f := newFront(t, s.Addr)
	p := newPuller(t)
	got := p.mustPull(t, f.addr+"/team/app:v1")
	wantLayers(t, got, layers...)
	want := Config{
		Entrypoint: []string{"/entry"}, Cmd: []string{"serve", "80"}, Env: []string{"A=b", "PATH=/bin"}, WorkingDir: "/srv", User: "www:www",
		ExposedPorts: []string{"53/udp", "80/tcp", "8080/tcp"}, StopSignal: "SIGQUIT", Labels: map[string]string{"k": "v"},
		Volumes: []string{"/data", "/var"}, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	if diff := cmp.Diff(want, got.Config); diff != "" {
		t.Error(diff)
	}
	manifest, err := image.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(manifest)+len(config)) + sizeOf(t, layers[0]) + sizeOf(t, layers[1]) + sizeOf(t, layers[2])
	if got.Digest != digestOf(t, image) || got.Platform != "linux/amd64" || got.Size != size || got.Reference.Familiar() != f.addr+"/team/app:v1" {
		t.Errorf("image %+v, want a size of %d", got, size)
	}
	if u, err := p.Cache.Usage(); err != nil || u != (blob.Usage{Blobs: 5, Bytes: size}) {
		t.Errorf("the cache has %+v, %v", u, err)
	}
	if got.Layers[1].MediaType != string(types.OCILayerZStd) {
		t.Errorf("the layer is of the type %q", got.Layers[1].MediaType)
	}
	wantNoPartials(t, p.Cache)

	// Again: nothing but the manifest.
	f.forget()
	states := map[string]State{}
	p.Progress = func(p Progress) { states[p.Digest] = p.State }
	wantLayers(t, p.mustPull(t, f.addr+"/team/app:v1"), layers...)
	for _, r := range f.requests {
		if strings.Contains(r.URL.Path, "/blobs/") {
			t.Errorf("fetched again: %s", r.URL)
		}
	}
	for _, l := range layers {
		if states[digestOf(t, l)] != Cached {
			t.Errorf("states %v", states)
		}
	}

	// By digest: nothing at all.
	f.forget()
	wantLayers(t, p.mustPull(t, f.addr+"/team/app@"+digestOf(t, image)), layers...)
	if len(f.requests) != 0 {
		t.Errorf("asked for what is there: %v", f.requests[0].URL)
	}

	// By the name of this host.
	_, port, _ := strings.Cut(s.Addr, ":")
	wantLayers(t, newPuller(t).mustPull(t, "localhost:"+port+"/team/app:v1"), layers...)

	// By digest, into an empty cache.
	wantLayers(t, newPuller(t).mustPull(t, f.addr+"/team/app:other@"+digestOf(t, image)), layers...)
}

func TestProgress(t *testing.T) {
	s := startServer(t, "")
	var layers []v1.Layer
	for i := range uint64(5) {
		layers = append(layers, layer(t, i, 300_000))
	}
	s.push(t, "app", imageOf(t, "linux/amd64", layers...))
	p := newPuller(t)
	seen := map[string][]State{}
	p.Progress = func(p Progress) {
		if p.Done > p.Total || p.State == Done && p.Done != p.Total {
			t.Errorf("progress %+v", p)
		}
		if s := seen[p.Digest]; len(s) == 0 || s[len(s)-1] != p.State {
			seen[p.Digest] = append(s, p.State)
		}
	}
	p.mustPull(t, s.Addr+"/app")
	for _, l := range layers {
		if diff := cmp.Diff([]State{Waiting, Verifying, Downloading, Done}, seen[digestOf(t, l)]); diff != "" {
			t.Error(diff)
		}
	}
}

func TestNotThere(t *testing.T) {
	s := startServer(t, "")
	s.push(t, "app:v1", imageOf(t, "linux/amd64"))
	p := newPuller(t)
	_, err := p.pull(t, s.Addr+"/app:nosuch")
	wantError(t, err, ErrNotFound, "no image app:nosuch in "+s.Addr)
	_, err = p.pull(t, s.Addr+"/nosuch/app:v1")
	wantError(t, err, ErrNotFound, "no image nosuch/app:v1 in "+s.Addr)
	_, err = p.pull(t, s.Addr+"/app@"+someDigest)
	wantError(t, err, ErrNotFound, "no image app@"+someDigest+" in "+s.Addr)
	_, err = Resolve(t.Context(), Reference{Kind: Registry, Host: s.Addr, Name: "app", Digest: "sha256:../x"}, p.Options)
	wantError(t, err, ErrReference, "64 digits")
	if _, err := Resolve(t.Context(), Reference{Kind: Registry, Host: s.Addr, Name: "app"}, Options{}); err == nil {
		t.Error("without a cache it has nowhere to go")
	}
	_, err = p.pull(t, "tar:rootfs.tar")
	if err == nil || !strings.Contains(err.Error(), "no layers") {
		t.Errorf("a root filesystem: %v", err)
	}
}

// TestIndex: the image for the platform is chosen, and nothing of others is fetched.
func TestIndex(t *testing.T) {
	s := startServer(t, "")
	f := newFront(t, s.Addr)
	images := map[string]v1.Image{}
	layers := map[string]v1.Layer{}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for i, name := range []string{"linux/arm64/v8", "linux/amd64", "windows/amd64", "unknown/unknown"} {
		layers[name] = layer(t, uint64(i), 1000)
		images[name] = imageOf(t, name, layers[name])
		platform, err := v1.ParsePlatform(name)
		if err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: images[name], Descriptor: v1.Descriptor{Platform: platform}})
	}
	s.push(t, "app:v1", index)
	p := newPuller(t)
	for wanted, got := range map[string]string{"linux/amd64": "linux/amd64", "linux/arm64": "linux/arm64/v8", "linux/arm64/v8": "linux/arm64/v8"} {
		p.Platform = wanted
		image := p.mustPull(t, f.addr+"/app:v1")
		wantLayers(t, image, layers[got])
		if image.Digest != digestOf(t, images[got]) || image.Platform != got {
			t.Errorf("for %s: %s of %s", wanted, image.Digest, image.Platform)
		}
		// By the digest of the index, too.
		wantLayers(t, p.mustPull(t, f.addr+"/app@"+digestOf(t, index)), layers[got])
	}
	fetched := func(name string) bool {
		requests, _ := f.seen("/v2/app/blobs/" + digestOf(t, layers[name]))
		return len(requests) > 0
	}
	if !fetched("linux/amd64") || fetched("windows/amd64") || fetched("unknown/unknown") {
		t.Error("other layers were fetched than those wanted")
	}
	p.Platform = "linux/s390x"
	_, err := p.pull(t, f.addr+"/app:v1")
	wantError(t, err, ErrPlatform, "none for linux/s390x, but for linux/amd64, linux/arm64/v8, windows/amd64")
	if strings.Contains(err.Error(), "unknown") {
		t.Error(err)
	}
	s.push(t, "single:v1", images["linux/arm64/v8"])
	p.Platform = "linux/amd64"
	_, err = p.pull(t, f.addr+"/single:v1")
	wantError(t, err, ErrPlatform, "none for linux/amd64, but for linux/arm64/v8")
	p.Platform = "amd64"
	if _, err = p.pull(t, f.addr+"/single:v1"); err == nil || !strings.Contains(err.Error(), "say linux/amd64") {
		t.Errorf("half a platform: %v", err)
	}
}

// TestCorruptedInRegistry: what is not what its digest says is refused, and not kept.
func TestCorruptedInRegistry(t *testing.T) {
	s := startServer(t, "")
	l := layer(t, 1, 50_000)
	image := imageOf(t, "linux/amd64", l)
	s.push(t, "app:v1", image)
	p := newPuller(t)
	path := s.BlobPath(digestOf(t, l))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := append([]byte{}, good...)
	bad[1000] ^= 1
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = p.pull(t, s.Addr+"/app:v1")
	wantError(t, err, blob.ErrDigest, "layer "+digestOf(t, l))
	wantNoPartials(t, p.Cache)
	if p.Cache.Has(blob.Digest(digestOf(t, l))) {
		t.Error("it was kept")
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	wantLayers(t, p.mustPull(t, s.Addr+"/app:v1"), l)
}

// TestDamagedInCache: what was damaged in the cache, or cut short, is fetched again.
func TestDamagedInCache(t *testing.T) {
	s := startServer(t, "")
	l := layer(t, 1, 50_000)
	image := imageOf(t, "linux/amd64", l)
	s.push(t, "app:v1", image)
	p := newPuller(t)
	got := p.mustPull(t, s.Addr+"/app:v1")
	config, err := image.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	change := func(digest string, f func([]byte) []byte) {
		t.Helper()
		path := p.Cache.Dir() + "/blobs/" + strings.Replace(digest, ":", "/", 1)
		data, err := os.ReadFile(path)
		if err := errors.Join(err, os.Chmod(path, 0o600), os.WriteFile(path, f(data), 0)); err != nil {
			t.Fatal(err)
		}
	}
	flip := func(data []byte) []byte { data[0] ^= 1; return data }
	change(digestOf(t, image), flip)
	change(config.String(), flip)
	change(digestOf(t, l), func(data []byte) []byte { return data[:100] })
	for _, reference := range []string{"/app@" + digestOf(t, image), "/app:v1"} {
		wantLayers(t, p.mustPull(t, s.Addr+reference), l)
	}
	for _, digest := range []string{digestOf(t, image), config.String(), digestOf(t, l)} {
		if err := p.Cache.Verify(t.Context(), blob.Digest(digest)); err != nil {
			t.Error(err)
		}
	}
	// A layer of the right size is found out by who reads it, and repaired when it was verified.
	change(digestOf(t, l), flip)
	r, err := got.OpenLayer(got.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	buffer := make([]byte, 100_000)
	for err == nil {
		_, err = r.Read(buffer)
	}
	wantError(t, err, blob.ErrDamaged)
	wantError(t, p.Cache.Verify(t.Context(), blob.Digest(digestOf(t, l))), blob.ErrDamaged)
	wantLayers(t, p.mustPull(t, s.Addr+"/app:v1"), l)
}

// TestPruneWhilePulling: a pull that runs loses nothing to a prune.
func TestPruneWhilePulling(t *testing.T) {
	s := startServer(t, "")
	first, second := layer(t, 1, 50_000), layer(t, 2, 50_000)
	s.push(t, "app:v1", imageOf(t, "linux/amd64", first, second))
	f := newFront(t, s.Addr)
	p := newPuller(t)
	f.cutOnce("/v2/app/blobs/"+digestOf(t, second), 1000, func() {
		if _, err := p.Cache.Prune(context.Background(), func(blob.Digest) bool { return false }); !errors.Is(err, blob.ErrBusy) {
			t.Errorf("pruned: %v", err)
		}
	})
	wantLayers(t, p.mustPull(t, f.addr+"/app:v1"), first, second)
	if n, err := p.Cache.Prune(t.Context(), func(blob.Digest) bool { return false }); n == 0 || err != nil {
		t.Errorf("afterwards it frees %d, %v", n, err)
	}
}
