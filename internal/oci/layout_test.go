package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	ggcrlayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
	"github.com/smolvm/smolvm/internal/oci/blob"
	"golang.org/x/sys/unix"
)

// layoutOf writes a layout with images, by name. The name may be empty.
func layoutOf(t testing.TB, images map[string]v1.Image) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "Some App")
	path, err := ggcrlayout.Write(dir, empty.Index)
	for name, image := range images {
		var opts []ggcrlayout.Option
		if name != "" {
			opts = append(opts, ggcrlayout.WithAnnotations(map[string]string{refName: name}))
		}
		if err == nil {
			err = path.AppendImage(image, opts...)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// archiveOf puts the files in dir into a tar file.
func archiveOf(t testing.TB, dir string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close()); err != nil {
		t.Fatal(err)
	}
	return save(t, "app.tar", b.Bytes())
}

func save(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// packed compresses a file.
func packed(t testing.TB, path, format string) string {
	t.Helper()
	var b bytes.Buffer
	data := readAll(t, path)
	if format == "gz" {
		w := gzip.NewWriter(&b)
		_, err := w.Write(data)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
	} else {
		w, err := zstd.NewWriter(&b)
		if err == nil {
			_, err = w.Write(data)
		}
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return save(t, "app.tar."+format, b.Bytes())
}

// forms are a layout in all forms that it may have.
func forms(t testing.TB, dir string) []string {
	file := archiveOf(t, dir)
	return []string{"oci:" + dir, "oci-archive:" + file, "oci-archive:" + packed(t, file, "gz"), "oci-archive:" + packed(t, file, "zst")}
}

func TestLayouts(t *testing.T) {
	l, other := layer(t, 1, 100_000), layer(t, 2, 1000)
	image := imageOf(t, "linux/amd64", l, other)
	for _, form := range forms(t, layoutOf(t, map[string]v1.Image{"": image})) {
		p := newPuller(t)
		got := p.mustPull(t, form)
		wantLayers(t, got, l, other)
		if got.Digest != digestOf(t, image) {
			t.Errorf("%s: %s", form, got.Digest)
		}
		if name := got.Reference.Familiar(); name != "some-app:latest" && name != "app:latest" {
			t.Errorf("%s is known as %s", form, name)
		}
		wantNoPartials(t, p.Cache)
		wantLayers(t, p.mustPull(t, form+"@"+digestOf(t, image)), l, other)
		_, err := p.pull(t, form+":v1")
		wantError(t, err, ErrNotFound, "v1 in ", "@"+digestOf(t, image))
		_, err = p.pull(t, form+"@"+someDigest)
		wantError(t, err, ErrNotFound, someDigest)
		p.Platform = "linux/arm64"
		_, err = p.pull(t, form)
		wantError(t, err, ErrPlatform, "but for linux/amd64")
	}
}

// TestNamesInLayouts: one of several is chosen by the tag, or the whole name, that it has there.
func TestNamesInLayouts(t *testing.T) {
	one, two := layer(t, 1, 1000), layer(t, 2, 1000)
	dir := layoutOf(t, map[string]v1.Image{"v1": imageOf(t, "linux/amd64", one), "ghcr.io/x/y:v2": imageOf(t, "linux/amd64", two)})
	for _, form := range forms(t, dir) {
		p := newPuller(t)
		wantLayers(t, p.mustPull(t, form+":v1"), one)
		wantLayers(t, p.mustPull(t, form+":v2"), two)
		got := p.mustPull(t, form+":ghcr.io/x/y:v2")
		wantLayers(t, got, two)
		if name := got.Reference.Familiar(); name != "ghcr.io/x/y:v2" {
			t.Errorf("it is known as %s", name)
		}
		_, err := p.pull(t, form)
		wantError(t, err, ErrNotFound, "has several", "v1", "ghcr.io/x/y:v2")
	}
	single := newPuller(t).mustPull(t, "oci:"+layoutOf(t, map[string]v1.Image{"v1": imageOf(t, "linux/amd64", one)}))
	if name := single.Reference.Familiar(); name != "some-app:v1" {
		t.Errorf("it is known as %s", name)
	}
}

// TestPlatformsInLayouts: an index in the layout's index, and entries that differ by platform only.
func TestPlatformsInLayouts(t *testing.T) {
	amd, arm := layer(t, 1, 1000), layer(t, 2, 1000)
	images := []mutate.IndexAddendum{
		{Add: imageOf(t, "linux/amd64", amd), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		{Add: imageOf(t, "linux/arm64", arm), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
	}
	flat, err := ggcrlayout.Write(t.TempDir(), mutate.AppendManifests(empty.Index, images...))
	if err != nil {
		t.Fatal(err)
	}
	index := mutate.AppendManifests(empty.Index, images...)
	nested, err := ggcrlayout.Write(t.TempDir(), mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: index}))
	if err != nil {
		t.Fatal(err)
	}
	p := newPuller(t)
	for _, dir := range []string{string(flat), string(nested), string(nested) + "@" + digestOf(t, index)} {
		p.Platform = "linux/amd64"
		wantLayers(t, p.mustPull(t, "oci:"+dir), amd)
		p.Platform = "linux/arm64"
		wantLayers(t, p.mustPull(t, "oci:"+dir), arm)
		p.Platform = "linux/s390x"
		_, err := p.pull(t, "oci:"+dir)
		wantError(t, err, ErrPlatform, "linux/amd64, linux/arm64")
	}
}

func TestWrongLayouts(t *testing.T) {
	l := layer(t, 1, 10_000)
	image := imageOf(t, "linux/amd64", l)
	for name, test := range map[string]struct {
		change func(dir, layer string) error
		want   error
		words  string
	}{
		"no index":      {func(dir, _ string) error { return os.Remove(dir + "/index.json") }, ErrInvalid, "no index.json"},
		"bad index":     {func(dir, _ string) error { return os.WriteFile(dir+"/index.json", []byte("{"), 0o600) }, ErrInvalid, "malformed"},
		"large index":   {func(dir, _ string) error { return os.Truncate(dir+"/index.json", maxManifest+1) }, ErrTooLarge, "index.json"},
		"no layer":      {func(_, layer string) error { return os.Remove(layer) }, ErrInvalid, digestOf(t, l) + " is not in"},
		"short layer":   {func(_, layer string) error { return os.Truncate(layer, 10) }, ErrInvalid, "10 bytes"},
		"damaged layer": {func(_, layer string) error { return os.WriteFile(layer, make([]byte, sizeOf(t, l)), 0o600) }, blob.ErrDigest, "layer " + digestOf(t, l)},
	} {
		t.Run(name, func(t *testing.T) {
			dir := layoutOf(t, map[string]v1.Image{"": image})
			layer := filepath.Join(dir, blobPath(digestOf(t, l)))
			if err := errors.Join(os.Chmod(layer, 0o600), test.change(dir, layer)); err != nil {
				t.Fatal(err)
			}
			for _, form := range forms(t, dir) {
				p := newPuller(t)
				_, err := p.pull(t, form)
				wantError(t, err, test.want, test.words)
				wantNoPartials(t, p.Cache)
			}
		})
	}
	dir := layoutOf(t, map[string]v1.Image{"": image})
	pipe := filepath.Join(dir, blobPath(digestOf(t, l)))
	if err := errors.Join(os.Remove(pipe), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	_, err := newPuller(t).pull(t, "oci:"+dir)
	wantError(t, err, ErrInvalid, "is no file") // and it does not wait for a writer
	_, err = newPuller(t).pull(t, "oci-archive:"+pipe)
	wantError(t, err, ErrInvalid, "is no file")
	_, err = newPuller(t).pull(t, "oci:"+dir+"/none")
	wantError(t, err, ErrInvalid, "no index.json")
	_, err = newPuller(t).pull(t, "oci-archive:"+dir+"/none")
	wantError(t, err, fs.ErrNotExist, dir+"/none")
}

// TestDigestIsNoPath: what a layout calls a digest does not lead out of it.
func TestDigestIsNoPath(t *testing.T) {
	l := layer(t, 1, 1000)
	dir := layoutOf(t, map[string]v1.Image{"": imageOf(t, "linux/amd64", l)})
	var index map[string]any
	if err := json.Unmarshal(readAll(t, dir+"/index.json"), &index); err != nil {
		t.Fatal(err)
	}
	index["manifests"].([]any)[0].(map[string]any)["digest"] = "sha256:../../index.json"
	if err := os.WriteFile(dir+"/index.json", toJSON(t, index), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, form := range forms(t, dir) {
		_, err := newPuller(t).pull(t, form)
		wantError(t, err, blob.ErrAlgorithm, "64 digits")
	}
}

// savedBy writes an archive as docker save did before it knew of OCI.
func savedBy(t *testing.T, images map[string]v1.Image) string {
	t.Helper()
	tags := map[name.Tag]v1.Image{}
	for text, image := range images {
		tag, err := name.NewTag(text)
		if err != nil {
			t.Fatal(err)
		}
		tags[tag] = image
	}
	path := filepath.Join(t.TempDir(), "app.tar")
	if err := tarball.MultiWriteToFile(path, tags); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDockerArchives(t *testing.T) {
	one, two := layer(t, 1, 100_000), layer(t, 2, 1000)
	first, second := imageOf(t, "linux/amd64", one, two), imageOf(t, "linux/amd64", two)
	single := savedBy(t, map[string]v1.Image{"docker.io/team/app:v1": first})
	both := savedBy(t, map[string]v1.Image{"docker.io/team/app:v1": first, "h:5/x:v2": second})
	digests := map[string]bool{}
	for _, file := range []string{single, packed(t, single, "gz"), packed(t, single, "zst"), both + ":team/app:v1", both + ":docker.io/team/app:v1"} {
		p := newPuller(t)
		got := p.mustPull(t, "docker-archive:"+file)
		wantLayers(t, got, one, two)
		if name := got.Reference.Familiar(); name != "team/app:v1" {
			t.Errorf("%s is known as %s", file, name)
		}
		if got.Config.WorkingDir != "/srv" || got.Platform != "linux/amd64" {
			t.Errorf("got %+v", got)
		}
		digests[got.Digest] = true
		if !p.Cache.Has(blob.Digest(got.Digest)) {
			t.Error("the manifest is not in the cache")
		}
		wantNoPartials(t, p.Cache)
	}
	if len(digests) != 1 {
		t.Errorf("the same image has the digests %v", digests)
	}
	p := newPuller(t)
	wantLayers(t, p.mustPull(t, "docker-archive:"+both+":h:5/x:v2"), two)
	_, err := p.pull(t, "docker-archive:"+both)
	wantError(t, err, ErrNotFound, "has 2", "h:5/x:v2", "team/app:v1")
	_, err = p.pull(t, "docker-archive:"+single+":team/app:v9")
	wantError(t, err, ErrNotFound, "team/app:v9 in "+single, "team/app:v1")
	_, err = p.pull(t, "docker-archive:"+archiveOf(t, layoutOf(t, map[string]v1.Image{"": first})))
	wantError(t, err, ErrInvalid, "no manifest.json", "oci-archive:FILE")
	_, err = p.pull(t, "oci-archive:"+single)
	wantError(t, err, ErrInvalid, "no index.json")
	p.Platform = "linux/arm64"
	_, err = p.pull(t, "docker-archive:"+single)
	wantError(t, err, ErrPlatform, "but for linux/amd64")
}

// member is an entry of an archive that a test writes.
type member struct {
	name, link string
	kind       byte
	data       []byte
}

func writeArchive(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if m.kind == 0 {
			m.kind = tar.TypeReg
		}
		err := w.WriteHeader(&tar.Header{Name: m.name, Linkname: m.link, Typeflag: m.kind, Size: int64(len(m.data)), Mode: 0o644})
		if err == nil {
			_, err = w.Write(m.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// parts returns a config and two layers of an image as docker save has them: uncompressed.
func savedParts(t testing.TB) (config, lower, upper []byte) {
	t.Helper()
	lower, upper = tarOf(t, "lower", noise(1, 2000)), tarOf(t, "upper", noise(2, 3000))
	config = toJSON(t, map[string]any{"os": "linux", "architecture": "amd64", "config": map[string]any{"Cmd": []string{"x"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{string(blob.Of(lower)), string(blob.Of(upper)), string(blob.Of(lower))}}})
	return config, lower, upper
}

// TestOldDockerArchive: layers in directories of their own, and a link in place of the second of two.
func TestOldDockerArchive(t *testing.T) {
	config, lower, upper := savedParts(t)
	image := savedImage{Config: "c.json", RepoTags: []string{"app:v1"}, Layers: []string{"a/layer.tar", "b/layer.tar", "c/layer.tar"}}
	for name, third := range map[string]member{
		"symbolic": {name: "c/layer.tar", link: "../a/layer.tar", kind: tar.TypeSymlink},
		"hard":     {name: "c/layer.tar", link: "./a/layer.tar", kind: tar.TypeLink},
	} {
		data := writeArchive(t,
			member{name: "./a/", kind: tar.TypeDir}, member{name: "./a/VERSION", data: []byte("1.0")}, member{name: "./a/layer.tar", data: lower},
			member{name: "b/layer.tar", data: upper}, third, member{name: "c.json", data: config},
			member{name: "repositories", data: []byte("{}")}, member{name: "manifest.json", data: toJSON(t, []savedImage{image})})
		got := newPuller(t).mustPull(t, "docker-archive:"+save(t, "old.tar", data))
		if len(got.Layers) != 3 || got.Layers[0] != got.Layers[2] || got.Layers[1].Digest != string(blob.Of(upper)) || got.Layers[1].DiffID != got.Layers[1].Digest {
			t.Errorf("%s: %+v", name, got.Layers)
		}
		if got.Reference.Familiar() != "app:v1" {
			t.Errorf("it is known as %s", got.Reference.Familiar())
		}
	}
}

// TestNewDockerArchive: an OCI image layout with a manifest.json beside it, and links out of it that
// lead nowhere.
func TestNewDockerArchive(t *testing.T) {
	config, lower, upper := savedParts(t)
	path := func(data []byte) string { return blobPath(string(blob.Of(data))) }
	image := savedImage{Config: path(config), Layers: []string{path(lower), path(upper), path(lower)}}
	manifest := toJSON(t, []savedImage{image})
	whole := []member{
		{name: path(lower), data: lower}, {name: path(upper), data: upper}, {name: path(config), data: config},
		{name: "index.json", data: []byte(`{"schemaVersion":2}`)}, {name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{name: "manifest.json", data: manifest},
	}
	got := newPuller(t).mustPull(t, "docker-archive:"+save(t, "new.tar", writeArchive(t, whole...)))
	if len(got.Layers) != 3 || got.Reference.Familiar() != "new:latest" || got.Config.Cmd[0] != "x" {
		t.Errorf("got %+v", got)
	}
	for name, lowest := range map[string]member{
		"out":    {name: path(lower), link: "../../../../../../etc/passwd", kind: tar.TypeSymlink},
		"root":   {name: path(lower), link: "/etc/passwd", kind: tar.TypeSymlink},
		"hard":   {name: path(lower), link: "/etc/passwd", kind: tar.TypeLink},
		"circle": {name: path(lower), link: path(lower), kind: tar.TypeLink},
		"device": {name: path(lower), kind: tar.TypeChar},
	} {
		_, err := newPuller(t).pull(t, "docker-archive:"+save(t, "bad.tar", writeArchive(t, append([]member{lowest}, whole[1:]...)...)))
		wantError(t, err, ErrInvalid, path(lower))
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// A layer that is not the one of which the configuration speaks.
	whole[0].data = upper
	whole[1].data = lower
	p := newPuller(t)
	_, err := p.pull(t, "docker-archive:"+save(t, "swapped.tar", writeArchive(t, whole...)))
	wantError(t, err, ErrInvalid, "is not the one")
}

func TestWrongArchives(t *testing.T) {
	config, lower, _ := savedParts(t)
	list := func(images ...savedImage) []byte { return toJSON(t, images) }
	good := writeArchive(t, member{name: "l", data: lower}, member{name: "manifest.json", data: list(savedImage{Config: "c", Layers: []string{"l"}})})
	for name, test := range map[string]struct {
		data  []byte
		want  error
		words string
	}{
		"empty":       {nil, ErrInvalid, "no manifest.json"},
		"no tar":      {bytes.Repeat([]byte("text "), 500), ErrInvalid, "read archive"},
		"cut":         {good[:1000], ErrInvalid, "unexpected EOF"},
		"no config":   {good, ErrInvalid, `"c" is not in`},
		"cut gzip":    {[]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1}, ErrInvalid, "decompress"},
		"bad gzip":    {[]byte{0x1f, 0x8b, 8}, ErrInvalid, "decompress"},
		"bad zstd":    {[]byte{0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3, 4, 5}, ErrInvalid, "decompress"},
		"xz":          {[]byte("\xfd7zXZ\x00\x00\x04"), ErrInvalid, "unxz"},
		"no list":     {writeArchive(t, member{name: "manifest.json", data: []byte("{}")}), ErrInvalid, "malformed"},
		"empty list":  {writeArchive(t, member{name: "manifest.json", data: []byte("[]")}), ErrNotFound, "has 0"},
		"many layers": {writeArchive(t, member{name: "manifest.json", data: list(savedImage{Layers: make([]string, 513)})}), ErrTooLarge, "513"},
		"no layer":    {writeArchive(t, member{name: "c", data: config}, member{name: "manifest.json", data: list(savedImage{Config: "c", Layers: []string{"x\x1b"}})}), ErrInvalid, `"x" is not in`},
		"other count": {writeArchive(t, member{name: "c", data: config}, member{name: "manifest.json", data: list(savedImage{Config: "c"})}), ErrInvalid, "knows of 3"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPuller(t)
			_, err := p.pull(t, "docker-archive:"+save(t, "bad.tar", test.data))
			wantError(t, err, test.want, test.words)
			wantNoPartials(t, p.Cache)
		})
	}
	many := make([]member, maxEntries+1)
	for i := range many {
		many[i].name = "x"
	}
	_, err := newPuller(t).pull(t, "oci-archive:"+save(t, "many.tar", writeArchive(t, many...)))
	wantError(t, err, ErrTooLarge, "entries")
	// What decompresses to more than there may be is not decompressed to its end.
	bomb := packed(t, save(t, "zeros", make([]byte, 32<<20)), "gz")
	p := newPuller(t)
	p.MaxSize = 1000
	_, err = p.pull(t, "oci-archive:"+bomb)
	wantError(t, err, ErrTooLarge, "decompressed")
}

func FuzzArchive(f *testing.F) {
	config, lower, upper := savedParts(f)
	image := savedImage{Config: "c", Layers: []string{"l", "u", "k"}, RepoTags: []string{"x:1"}}
	f.Add(writeArchive(f, member{name: "l", data: lower}, member{name: "u", data: upper}, member{name: "k", link: "l", kind: tar.TypeLink},
		member{name: "c", data: config}, member{name: "manifest.json", data: toJSON(f, []savedImage{image})}))
	f.Add(readAll(f, archiveOf(f, layoutOf(f, map[string]v1.Image{"v1": imageOf(f, "linux/amd64", layer(f, 1, 10))}))))
	cache, err := blob.Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(f.TempDir(), "archive")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, kind := range []Kind{OCIArchive, DockerArchive} {
			image, err := Resolve(t.Context(), Reference{Kind: kind, Path: path}, Options{Cache: cache, MaxSize: 1 << 20})
			if err == nil && !strings.HasPrefix(image.Digest, "sha") {
				t.Errorf("%+v", image)
			}
		}
	})
}
