package image

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// imageFor returns a container image for an architecture, with two layers.
func imageFor(t *testing.T, architecture string) v1.Image {
	t.Helper()
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	return configured(t, img, func(about *v1.ConfigFile) {
		about.OS, about.Architecture = "linux", architecture
		about.Config = v1.Config{
			Env: []string{"A=" + architecture}, Entrypoint: []string{"/entry"}, Cmd: []string{"a", "b"}, WorkingDir: "work/../here", User: "me:us",
		}
	})
}

func configured(t *testing.T, img v1.Image, change func(*v1.ConfigFile)) v1.Image {
	t.Helper()
	about, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	about = about.DeepCopy()
	change(about)
	if img, err = mutate.ConfigFile(img, about); err != nil {
		t.Fatal(err)
	}
	return img
}

// indexOf returns an index with these in it, by the platform of each.
func indexOf(parts map[string]mutate.Appendable) v1.ImageIndex {
	index := v1.ImageIndex(empty.Index)
	for platform, part := range parts {
		add := mutate.IndexAddendum{Add: part}
		if platform != "" {
			add.Platform = &v1.Platform{OS: "linux", Architecture: platform}
		}
		index = mutate.AppendManifests(index, add)
	}
	return index
}

func TestOpenContainer(t *testing.T) {
	amd64, arm64 := imageFor(t, "amd64"), imageFor(t, "arm64")
	both := indexOf(map[string]mutate.Appendable{"amd64": amd64, "arm64": arm64})
	deep := both
	for range maxNested {
		deep = indexOf(map[string]mutate.Appendable{"": deep})
	}
	elsewhere, err := mutate.Append(amd64, mutate.Addendum{Layer: static.NewLayer([]byte("x"), types.OCIRestrictedLayer)}) //nolint:staticcheck // it is what must be refused
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		index v1.ImageIndex
		want  string // in the error; empty: none
	}{
		"one":             {indexOf(map[string]mutate.Appendable{"": amd64}), ""},
		"by platform":     {both, ""},
		"nested":          {indexOf(map[string]mutate.Appendable{"": both}), ""},
		"too deep":        {deep, "more than 4 lists"},
		"other platform":  {indexOf(map[string]mutate.Appendable{"arm64": arm64}), "no such image for linux/amd64"},
		"says it inside":  {indexOf(map[string]mutate.Appendable{"": arm64}), "it is for linux/arm64, not linux/amd64"},
		"several":         {indexOf(map[string]mutate.Appendable{"amd64": amd64, "": both}), "there are several images in it"},
		"nothing":         {empty.Index, "no such image"},
		"kept elsewhere":  {indexOf(map[string]mutate.Appendable{"": elsewhere}), "layer 3: it is kept elsewhere"},
		"too few digests": {indexOf(map[string]mutate.Appendable{"": configured(t, amd64, func(about *v1.ConfigFile) { about.RootFS.DiffIDs = about.RootFS.DiffIDs[:1] })}), "2 layers, and digests of 1"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "layout")
			if _, err := layout.Write(dir, c.index); err != nil {
				t.Fatal(err)
			}
			got, err := openContainer(origin{kind: originOCI, path: dir})
			if c.want != "" {
				if !errors.Is(err, ErrOrigin) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || len(got.layers) != 2 {
				t.Fatalf("got %+v, %v", got, err)
			}
			want := Config{Entrypoint: []string{"/entry"}, Cmd: []string{"a", "b"}, WorkingDir: "/here", User: "me:us"}
			if diff := cmp.Diff(want, got.config) + cmp.Diff([]string{"A=amd64"}, got.env); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCutTag(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if file, tag := cutTag(plain + ":example.com:5000/app:1"); file != plain+":example.com:5000/app:1" || tag != "" {
		t.Errorf("of what is not there: %q, %q", file, tag)
	}
	touch(t, plain)
	if file, tag := cutTag(plain + ":example.com:5000/app:1"); file != plain || tag != "example.com:5000/app:1" {
		t.Errorf("got %q, %q", file, tag)
	}
	touch(t, plain+":odd")
	if file, tag := cutTag(plain + ":odd"); file != plain+":odd" || tag != "" {
		t.Errorf("a file with a colon in its name: %q, %q", file, tag)
	}
}
