package image

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/gzip"

	"github.com/smolvm/smolvm/internal/image/rootfs"
)

// Config is what a container image says of the commands that run in it. The zero value says
// nothing.
type Config struct {
	Entrypoint []string `json:"entrypoint,omitempty"` // what begins its own command
	Cmd        []string `json:"cmd,omitempty"`        // the rest of its own command
	WorkingDir string   `json:"working_dir,omitempty"`
	User       string   `json:"user,omitempty"` // name or number, ":GROUP" may follow

	ExposedPorts []string          `json:"exposed_ports,omitempty"` // "80/tcp", sorted
	StopSignal   string            `json:"stop_signal,omitempty"`   // what ends its own command: a name or number, as it says it
	Labels       map[string]string `json:"labels,omitempty"`
}

// container is a container image: layers, the lowest first, and what it says of itself.
type container struct {
	layers []rootfs.Layer
	env    []string
	config Config
}

// openContainer opens the container image of an origin. Its error wraps ErrOrigin.
func openContainer(o origin) (container, error) {
	open, stored := openLayout, v1.Layer.Compressed
	if o.kind == originDockerArchive {
		// Its layers are plain as a rule, and would be compressed to be read.
		open, stored = openDockerArchive, v1.Layer.Uncompressed
	}
	img, err := open(o.path, o.tag)
	var c container
	if err == nil {
		c, err = readContainer(img, stored)
	}
	if err != nil {
		return container{}, fmt.Errorf("%w: %s: %w", ErrOrigin, o, err)
	}
	return c, nil
}

func readContainer(img v1.Image, stored func(v1.Layer) (io.ReadCloser, error)) (container, error) {
	about, err := img.ConfigFile()
	if err != nil {
		return container{}, fmt.Errorf("read configuration: %w", err)
	}
	if p := about.Platform(); p != nil && !runsHere(p) {
		return container{}, fmt.Errorf("it is for %s, not linux/%s", p, runtime.GOARCH)
	}
	layers, err := img.Layers()
	if err != nil {
		return container{}, fmt.Errorf("find layers: %w", err)
	}
	// A layer could be asked for it too, and would be unpacked for that.
	digests := about.RootFS.DiffIDs
	if len(digests) != len(layers) {
		return container{}, fmt.Errorf("it has %d layers, and digests of %d", len(layers), len(digests))
	}
	c := container{
		env: about.Config.Env,
		config: Config{
			Entrypoint: about.Config.Entrypoint, Cmd: about.Config.Cmd,
			User: about.Config.User, StopSignal: about.Config.StopSignal, Labels: about.Config.Labels,
		},
	}
	c.config.ExposedPorts = slices.Sorted(maps.Keys(about.Config.ExposedPorts))
	if dir := about.Config.WorkingDir; dir != "" {
		c.config.WorkingDir = path.Join("/", dir)
	}
	for i, layer := range layers {
		kind, err := layer.MediaType()
		if err == nil && !kind.IsDistributable() {
			err = errors.New("it is kept elsewhere")
		}
		if err != nil {
			return container{}, fmt.Errorf("layer %d: %w", i+1, err)
		}
		c.layers = append(c.layers, rootfs.Layer{
			Name: fmt.Sprintf("layer %d of %d", i+1, len(layers)), DiffID: digests[i].String(),
			Open: func() (io.ReadCloser, error) { return stored(layer) },
		})
	}
	return c, nil
}

// runsHere tells whether an image for a platform runs in guests of this host.
func runsHere(p *v1.Platform) bool {
	return cmp.Or(p.OS, "linux") == "linux" && cmp.Or(p.Architecture, runtime.GOARCH) == runtime.GOARCH
}

// tagAnnotation is where an index says what one of its images is called.
const tagAnnotation = "org.opencontainers.image.ref.name"

// openLayout opens the image of that tag, or the only one, in an OCI layout.
func openLayout(dir, tag string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	candidates := manifest.Manifests
	if tag != "" {
		candidates = slices.DeleteFunc(slices.Clone(candidates), func(d v1.Descriptor) bool { return d.Annotations[tagAnnotation] != tag })
	}
	var tags []string
	for _, d := range manifest.Manifests {
		tags = append(tags, cmp.Or(d.Annotations[tagAnnotation], d.Digest.String()))
	}
	for range maxNested {
		candidates = slices.DeleteFunc(slices.Clone(candidates), func(d v1.Descriptor) bool { return d.Platform != nil && !runsHere(d.Platform) })
		switch {
		case len(candidates) == 0:
			return nil, fmt.Errorf("there is no such image for linux/%s in it, only %s", runtime.GOARCH, strings.Join(tags, ", "))
		case len(candidates) > 1:
			return nil, fmt.Errorf("there are several images in it; add one of %s, as in oci:PATH:TAG", strings.Join(tags, ", "))
		}
		if !candidates[0].MediaType.IsIndex() {
			return index.Image(candidates[0].Digest)
		}
		if index, err = index.ImageIndex(candidates[0].Digest); err != nil {
			return nil, err
		}
		if manifest, err = index.IndexManifest(); err != nil {
			return nil, err
		}
		candidates = manifest.Manifests
	}
	return nil, fmt.Errorf("there are more than %d lists of images in one another", maxNested)
}

// maxNested is how deep lists of images may be in one another.
const maxNested = 4

// openDockerArchive opens the image of that name, or the only one, in what docker save wrote.
func openDockerArchive(file, tag string) (v1.Image, error) {
	var wanted *name.Tag
	if tag != "" {
		parsed, err := name.NewTag(tag)
		if err != nil {
			return nil, err
		}
		wanted = &parsed
	}
	return tarball.Image(func() (io.ReadCloser, error) { return openPlain(file) }, wanted)
}

// openPlain opens a file, which may be compressed by gzip.
func openPlain(path string) (io.ReadCloser, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	buffered := bufio.NewReader(file)
	if magic, err := buffered.Peek(2); err != nil || magic[0] != 0x1f || magic[1] != 0x8b {
		return plainFile{buffered, file}, nil
	}
	unpacked, err := gzip.NewReader(buffered)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return plainFile{unpacked, file}, nil
}

// plainFile is what a file holds when it is not compressed any more.
type plainFile struct {
	io.Reader
	io.Closer
}
