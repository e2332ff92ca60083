package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"
)

// container oci DIR TAG... writes an OCI layout with an image by each of the tags, and
// container docker-archive FILE NAME:TAG writes what docker save would.
//
// The image has busybox and a user called web, and a layer that takes one file away and puts another
// one there. Its command runs a shell as web in a directory that is in no layer.
func container(ts *testscript.TestScript, _ bool, args []string) {
	img, err := containerImage()
	ts.Check(err)
	to := ts.MkAbs(args[1])
	if args[0] == "docker-archive" {
		tag, err := name.NewTag(args[2])
		ts.Check(err)
		ts.Check(tarball.WriteToFile(to, tag, img))
		return
	}
	path, err := layout.Write(to, empty.Index)
	ts.Check(err)
	for _, tag := range args[2:] {
		ts.Check(path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag})))
	}
}

func containerImage() (v1.Image, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, err
	}
	lower := []tar.Header{
		{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755},
		{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "srv/old", Typeflag: tar.TypeReg, Mode: 0o644},
	}
	for _, applet := range strings.Fields("sh id pwd ls cat httpd") {
		lower = append(lower, tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"})
	}
	contents := map[string][]byte{
		"bin/busybox": busybox, "etc/passwd": []byte("root:x:0:0::/root:/bin/sh\nweb:x:1234:99::/home:/bin/sh\n"), "srv/new": []byte("from above\n"),
	}
	upper := []tar.Header{
		{Name: "srv/.wh.old", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "srv/new", Typeflag: tar.TypeReg, Mode: 0o644},
	}
	var layers []v1.Layer
	for _, entries := range [][]tar.Header{lower, upper} {
		layer, err := containerLayer(entries, contents)
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	about, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	about.OS, about.Architecture = "linux", "amd64"
	about.Config = v1.Config{
		Env: []string{"PATH=/bin", "COLOR=blue"}, WorkingDir: "/work/here", User: "web",
		Entrypoint: []string{"sh", "-c"}, Cmd: []string{`echo "$(id -un) in $(pwd), $COLOR: $(ls /srv)"`},
	}
	return mutate.ConfigFile(img, about)
}

// containerLayer returns a layer of these entries, of whose files the contents are given by name.
func containerLayer(entries []tar.Header, contents map[string][]byte) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		h.Size = int64(len(contents[h.Name]))
		if err := w.WriteHeader(&h); err != nil {
			return nil, fmt.Errorf("write layer: %w", err)
		}
		if _, err := w.Write(contents[h.Name]); err != nil {
			return nil, fmt.Errorf("write layer: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
}
