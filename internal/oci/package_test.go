package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// packageOf makes a package with a layer of a file of so many bytes.
func packageOf(t testing.TB, seed uint64, size int) *Package {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "layer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	layer, err := PackLayer(file, func(w io.Writer) error {
		_, err := w.Write(tarOf(t, fmt.Sprintf("file%d", seed), noise(seed, size)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPackage(packedImage(), "a comment", layer)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func packedImage() Config {
	return Config{
		Created:    time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Entrypoint: []string{"/entry"}, Cmd: []string{"a", "b"}, Env: []string{"A=1", "B=x y"}, WorkingDir: "/srv", User: "web",
		ExposedPorts: []string{"80/tcp", "53/udp"}, StopSignal: "SIGINT", Labels: map[string]string{"l": "v"}, Volumes: []string{"/data"},
	}
}

// wantPackage checks that an image is the package.
func wantPackage(t *testing.T, image *Image, p *Package) {
	t.Helper()
	want := packedImage()
	want.ExposedPorts = []string{"53/udp", "80/tcp"}
	if !reflect.DeepEqual(image.Config, want) {
		t.Errorf("it says %+v, not %+v", image.Config, want)
	}
	if len(image.Layers) != 1 || image.Layers[0].Digest != p.layer.digest || image.Layers[0].DiffID != p.layer.diffID {
		t.Fatalf("it has %+v", image.Layers)
	}
	r, err := image.OpenLayer(image.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	want2, err2 := io.ReadAll(p.layer.reader())
	if err := errors.Join(err, err2); err != nil || !bytes.Equal(got, want2) {
		t.Errorf("its layer has other contents, %v", err)
	}
}

func mustReference(t testing.TB, s string) Reference {
	t.Helper()
	ref, err := ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// What is written to an archive is found in it under its name, and is the same.
func TestWriteArchive(t *testing.T) {
	p := packageOf(t, 1, 100_000)
	for _, kind := range []Kind{OCIArchive, DockerArchive} {
		for _, name := range []string{"web", "docker.io/team/web:2", "ghcr.io/team/app/db:v1"} {
			var first, second bytes.Buffer
			told := int64(0)
			err := errors.Join(p.Write(t.Context(), &first, kind, mustReference(t, name), func(n int64) { told = n }),
				p.Write(t.Context(), &second, kind, mustReference(t, name), nil))
			if err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) || told != p.Size() {
				t.Fatalf("%s: %v, or two archives differ, or %d bytes are told of %d", kind, err, told, p.Size())
			}
			path := filepath.Join(t.TempDir(), "image.tar")
			writeFile(t, path, first.Bytes())
			puller := newPuller(t)
			refs, err := ListArchive(t.Context(), path, puller.Options)
			if err != nil || len(refs) != 1 || refs[0].Kind != kind || refs[0].Familiar() != mustReference(t, name).Familiar() {
				t.Fatalf("%s has %v, %v", kind, refs, err)
			}
			image, err := Resolve(t.Context(), refs[0], puller.Options)
			if err != nil {
				t.Fatal(err)
			}
			wantPackage(t, image, p)
			if kind == OCIArchive && image.Digest != p.Digest() {
				t.Errorf("it is %s, not %s", image.Digest, p.Digest())
			}
			wantPackage(t, puller.mustPull(t, string(kind)+":"+path), p)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Write(ctx, io.Discard, OCIArchive, mustReference(t, "web"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

func TestListArchive(t *testing.T) {
	p := newPuller(t)
	for name, c := range map[string]struct {
		files map[string]string
		want  string
		err   error
	}{
		"saved":          {map[string]string{"manifest.json": `[{"RepoTags":["a:1","b"]},{"RepoTags":["x.org/c:2"]},{"RepoTags":null}]`}, "[a:1 b:latest x.org/c:2]", nil},
		"saved unnamed":  {map[string]string{"manifest.json": `[{"RepoTags":null}]`}, "[list:latest]", nil},
		"several":        {map[string]string{"manifest.json": `[{},{}]`}, "", ErrNotFound},
		"both":           {map[string]string{"manifest.json": `[{"RepoTags":["a:1"]}]`, "index.json": `{"manifests":[{}]}`}, "[a:1]", nil},
		"layout":         {map[string]string{"index.json": `{"manifests":[{"annotations":{"org.opencontainers.image.ref.name":"v1"}},{"annotations":{"io.containerd.image.name":"docker.io/library/web:2"}},{"annotations":{"io.containerd.image.name":"docker.io/library/web:2"}}]}`}, "[web:2 list:v1]", nil},
		"layout unnamed": {map[string]string{"index.json": `{"manifests":[{}]}`}, "[list:latest]", nil},
		"nothing":        {map[string]string{"etc/passwd": "root"}, "", ErrInvalid},
		"malformed":      {map[string]string{"manifest.json": `{"a":`}, "", ErrInvalid},
		"empty":          {map[string]string{"index.json": `{}`}, "", ErrNotFound},
	} {
		path := filepath.Join(t.TempDir(), "list.tar")
		var data bytes.Buffer
		w := tar.NewWriter(&data)
		for file, text := range c.files {
			if err := w.WriteHeader(&tar.Header{Name: file, Mode: 0o644, Size: int64(len(text))}); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, text); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		writeFile(t, path, data.Bytes())
		refs, err := ListArchive(t.Context(), path, p.Options)
		names := []string{}
		for _, ref := range refs {
			names = append(names, ref.Familiar())
		}
		if c.err != nil && !errors.Is(err, c.err) || c.err == nil && (err != nil || fmt.Sprint(names) != c.want) {
			t.Errorf("%s: %v, not %s, %v", name, names, c.want, err)
		}
	}
}

// What is pushed is what is pulled, and what the registry has is not sent again.
func TestPush(t *testing.T) {
	s := startServer(t, "")
	f := newFront(t, s.Addr)
	p, puller := packageOf(t, 1, 2_000_000), newPuller(t)
	var states []State
	opts := puller.Options
	opts.Progress = func(p Progress) { states = append(states, p.State) }
	ref := mustReference(t, f.addr+"/team/app:v1")
	digest, err := Push(t.Context(), p, ref, opts)
	if err != nil || digest != p.Digest() {
		t.Fatalf("it is %s, %v", digest, err)
	}
	if len(states) < 2 || states[0] != Uploading || states[len(states)-1] != Done {
		t.Errorf("it told %v", states)
	}
	image := puller.mustPull(t, f.addr+"/team/app:v1")
	wantPackage(t, image, p)
	if image.Digest != digest {
		t.Errorf("it is %s, not %s", image.Digest, digest)
	}
	f.forget()
	if _, err := Push(t.Context(), p, mustReference(t, f.addr+"/team/app:v2"), opts); err != nil {
		t.Fatal(err)
	}
	if sent, _ := f.seen("/v2/team/app/blobs/uploads/"); len(sent) != 0 {
		t.Errorf("%d uploads began though all was there", len(sent))
	}
	for _, bad := range []Reference{{Kind: OCIArchive, Path: "x"}, mustReference(t, f.addr+"/a@sha256:"+strings.Repeat("0", 64))} {
		if _, err := Push(t.Context(), p, bad, opts); !errors.Is(err, ErrReference) {
			t.Errorf("to %s: %v", bad, err)
		}
	}
}

// An upload that breaks off begins again; one that never succeeds ends.
func TestPushBroken(t *testing.T) {
	s := startServer(t, "")
	f := newFront(t, s.Addr)
	p, puller := packageOf(t, 2, 1_000_000), newPuller(t)
	var broken, rest atomic.Int32
	rest.Store(3)
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || rest.Load() == 0 || !strings.Contains(r.URL.Path, "/blobs/uploads/") {
			return false
		}
		rest.Add(-1)
		if broken.Add(1)%2 == 0 {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		_, _ = io.CopyN(io.Discard, r.Body, 1000)
		panic(http.ErrAbortHandler)
	})
	ref := mustReference(t, f.addr+"/app:v1")
	if _, err := Push(t.Context(), p, ref, puller.Options); err != nil || broken.Load() != 3 {
		t.Fatalf("after %d failures: %v", broken.Load(), err)
	}
	f.answer(nil)
	wantPackage(t, puller.mustPull(t, f.addr+"/app:v1"), p)

	rest.Store(1 << 20)
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return r.Method == http.MethodPost
	})
	if _, err := Push(t.Context(), packageOf(t, 3, 1000), ref, puller.Options); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a registry that takes nothing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.answer(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			cancel()
		}
		return false
	})
	if _, err := Push(ctx, packageOf(t, 4, 1000), ref, puller.Options); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

// A registry that takes nothing any more is given up; one that is slow is not.
func TestPushStalls(t *testing.T) {
	s := startServer(t, "")
	f := newFront(t, s.Addr)
	p, puller := packageOf(t, 5, 8_000_000), newPuller(t)
	puller.Patience = Patience{Attempts: 1, Delay: time.Millisecond, Stall: 200 * time.Millisecond}
	release := make(chan struct{})
	f.answer(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			<-release
			panic(http.ErrAbortHandler)
		}
		return false
	})
	_, err := Push(t.Context(), p, mustReference(t, f.addr+"/app:v1"), puller.Options)
	close(release)
	wantError(t, err, ErrStalled)
}

func TestPushAccess(t *testing.T) {
	s := startGuarded(t)
	p, puller, home := packageOf(t, 1, 1000), newPuller(t), atHome(t)
	puller.Keychain = nil
	ref := mustReference(t, s.Addr+"/app:v1")
	_, err := Push(t.Context(), p, ref, puller.Options)
	wantError(t, err, ErrAccess, "does not take app", "docker login "+s.Addr)
	logIn(t, filepath.Join(home, ".docker/config.json"), s.Addr, wrong)
	_, err = Push(t.Context(), p, ref, puller.Options)
	wantError(t, err, ErrAccess, "docker login "+s.Addr)
	wantNoSecret(t, err.Error()+puller.log.String())
	logIn(t, filepath.Join(home, ".docker/config.json"), s.Addr, secret)
	if _, err := Push(t.Context(), p, ref, puller.Options); err != nil {
		t.Fatal(err)
	}
	wantPackage(t, puller.mustPull(t, s.Addr+"/app:v1"), p)
	wantNoSecret(t, puller.log.String())
}
