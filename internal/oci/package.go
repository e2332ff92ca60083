package oci

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/smolvm/smolvm/internal/oci/blob"
)

// Package is an image of one layer that leaves this host: in an archive, or to a registry. The file
// of its layer must stay open, and as it is.
type Package struct {
	config   []byte
	manifest []byte
	layer    PackedLayer
}

// PackedLayer is a layer that is compressed, in a file that nobody writes to.
type PackedLayer struct {
	file           *os.File
	size           int64
	digest, diffID string
}

// PackLayer has a layer, a tar archive, written to a file, which is empty, compressed by gzip. The
// same layer makes the same file.
func PackLayer(file *os.File, write func(io.Writer) error) (PackedLayer, error) {
	const buffered = 1 << 20
	stored, plain := sha256.New(), sha256.New()
	out := bufio.NewWriterSize(file, buffered)
	packer := gzip.NewWriter(io.MultiWriter(out, stored))
	if err := write(io.MultiWriter(packer, plain)); err != nil {
		return PackedLayer{}, err
	}
	err := packer.Close()
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return PackedLayer{}, fmt.Errorf("write layer: %w", err)
	}
	size, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return PackedLayer{}, fmt.Errorf("write layer: %w", err)
	}
	digest := func(sum []byte) string { return "sha256:" + hex.EncodeToString(sum) }
	return PackedLayer{file: file, size: size, digest: digest(stored.Sum(nil)), diffID: digest(plain.Sum(nil))}, nil
}

// reader returns a reader of the layer from its beginning.
func (l PackedLayer) reader() *io.SectionReader { return io.NewSectionReader(l.file, 0, l.size) }

// packedConfig is a configuration as it is written.
type packedConfig struct {
	Created      time.Time `json:"created"`
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	Config       struct {
		User         string              `json:",omitempty"`
		ExposedPorts map[string]struct{} `json:",omitempty"`
		Env          []string            `json:",omitempty"`
		Entrypoint   []string            `json:",omitempty"`
		Cmd          []string            `json:",omitempty"`
		Volumes      map[string]struct{} `json:",omitempty"`
		WorkingDir   string              `json:",omitempty"`
		Labels       map[string]string   `json:",omitempty"`
		StopSignal   string              `json:",omitempty"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	History []packedHistory `json:"history"`
}

type packedHistory struct {
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
	Comment   string    `json:"comment,omitempty"`
}

// NewPackage makes an image for Linux, and the processors of this host, of a layer. The comment on
// it is for people.
func NewPackage(of Config, comment string, layer PackedLayer) (*Package, error) {
	c := packedConfig{Created: of.Created, Architecture: runtime.GOARCH, OS: "linux"}
	c.Config.User, c.Config.Env, c.Config.Entrypoint, c.Config.Cmd = of.User, of.Env, of.Entrypoint, of.Cmd
	c.Config.WorkingDir, c.Config.Labels, c.Config.StopSignal = of.WorkingDir, of.Labels, of.StopSignal
	c.Config.ExposedPorts, c.Config.Volumes = set(of.ExposedPorts), set(of.Volumes)
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", []string{layer.diffID}
	c.History = []packedHistory{{Created: of.Created, CreatedBy: "smolvm", Comment: comment}}
	p := &Package{layer: layer}
	var err error
	if p.config, err = json.Marshal(c); err != nil {
		return nil, fmt.Errorf("describe image: %w", err)
	}
	config := p.describe(types.OCIConfigJSON, p.config)
	p.manifest, err = json.Marshal(document{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: &config,
		Layers: []descriptor{{MediaType: types.OCILayer, Digest: layer.digest, Size: layer.size}},
	})
	if err != nil {
		return nil, fmt.Errorf("describe image: %w", err)
	}
	return p, nil
}

func set(list []string) map[string]struct{} {
	m := make(map[string]struct{}, len(list))
	for _, s := range list {
		m[s] = struct{}{}
	}
	return m
}

func (p *Package) describe(kind types.MediaType, data []byte) descriptor {
	return descriptor{MediaType: kind, Digest: string(blob.Of(data)), Size: int64(len(data))}
}

// Digest is that of the manifest.
func (p *Package) Digest() string { return string(blob.Of(p.manifest)) }

// Size is how many bytes the layer has.
func (p *Package) Size() int64 { return p.layer.size }
