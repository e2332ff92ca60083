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
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/smolvm/smolvm/internal/oci/registrytest"
)

// container oci DIR TAG... writes an OCI layout with an image by each of the tags, container
// docker-archive FILE NAME:TAG writes what docker save would, and container registry HOST/NAME:TAG
// [TEXT] pushes it to a registry, with that text in it. container scratch DIR writes an OCI layout with
// an image that has one static program and nothing else, and runs that as a user that it does not name.
//
// The image has busybox and a user called web, and a layer that takes one file away and puts another
// one there. Its command runs a shell as web in a directory that is in no layer.
func container(ts *testscript.TestScript, _ bool, args []string) {
	text := "from above"
	if args[0] == "registry" && len(args) > 2 {
		text = args[2]
	}
	img, err := containerImage(text)
	ts.Check(err)
	to := ts.MkAbs(args[1])
	switch args[0] {
	case "scratch":
		img, err = scratchImage()
		ts.Check(err)
		args = append(args, "latest")
	case "registry":
		to, err := name.ParseReference(args[1])
		ts.Check(err)
		ts.Check(remote.Write(to, img))
		return
	case "docker-archive":
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

// registries are those of a script, by the variables that have their addresses.
type registries map[string]*registrytest.Server

type registriesKey struct{}

// registry NAME starts a registry, and sets a variable to its address; registry NAME stop ends it.
func registry(ts *testscript.TestScript, _ bool, args []string) {
	all := ts.Value(registriesKey{}).(registries)
	if len(args) > 1 {
		ts.Check(all[args[0]].Kill())
		return
	}
	dir := ts.MkAbs("registry-" + args[0])
	ts.Check(os.Mkdir(dir, 0o700))
	s, err := registrytest.New(dir, "")
	ts.Check(err)
	ts.Defer(func() { _ = s.Kill() })
	all[args[0]] = s
	ts.Setenv(args[0], s.Addr)
}

// scratchImage returns an image of one program.
func scratchImage() (v1.Image, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, err
	}
	layer, err := containerLayer([]tar.Header{{Name: "busybox", Typeflag: tar.TypeReg, Mode: 0o755}}, map[string][]byte{"busybox": busybox})
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	about, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	about = about.DeepCopy()
	about.OS, about.Architecture = "linux", "amd64"
	about.Config = v1.Config{Entrypoint: []string{"/busybox"}, Cmd: []string{"id"}, User: "65532:65533"}
	return mutate.ConfigFile(img, about)
}

// containerImage returns an image with that text in /srv/new.
func containerImage(text string) (v1.Image, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, err
	}
	lower := []tar.Header{
		{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755},
		{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "srv/old", Typeflag: tar.TypeReg, Mode: 0o644},
	}
	for _, applet := range strings.Fields("sh id pwd ls cat httpd nc sleep touch") {
		lower = append(lower, tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"})
	}
	contents := map[string][]byte{
		"bin/busybox": busybox, "etc/passwd": []byte("root:x:0:0::/root:/bin/sh\nweb:x:1234:99::/home:/bin/sh\n"), "srv/new": []byte(text + "\n"),
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
		ExposedPorts: map[string]struct{}{"8317/tcp": {}, "80": {}, "53/udp": {}, "9/sctp": {}},
		StopSignal:   "SIGQUIT", Labels: map[string]string{"tier": "front", "from": "image"},
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
