package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/smolvm/smolvm/internal/image/rootfs"
	"github.com/smolvm/smolvm/internal/oci"
)

// SaveFormat is what an image is saved as.
type SaveFormat string

// The formats.
const (
	SaveOCI    SaveFormat = "oci"    // an archive of an OCI image layout
	SaveDocker SaveFormat = "docker" // what docker load reads
)

// kind is the format's name among references.
func (f SaveFormat) kind() oci.Kind {
	return map[SaveFormat]oci.Kind{SaveOCI: oci.OCIArchive, SaveDocker: oci.DockerArchive}[f]
}

// ErrFormat is wrapped by errors about a SaveFormat that there is not.
var ErrFormat = errors.New("unknown format of an archive")

const (
	stagePack    = "pack files"
	stageArchive = "write archive"
	stagePush    = "push"
	saveStages   = 2
)

// Save writes an image to an archive, as a container image of one layer. Its kernel, and the modules
// of that, are left out. progress may be nil; it is called by one goroutine at a time. It fails with
// ErrInvalidName, ErrNotFound or ErrFormat.
func (s *Store) Save(ctx context.Context, name string, w io.Writer, format SaveFormat, progress func(Progress)) error {
	kind := format.kind()
	if kind == "" {
		return fmt.Errorf("%w: %q is none of %s and %s", ErrFormat, format, SaveOCI, SaveDocker)
	}
	name, ref, err := nameAndReference(name)
	if err != nil {
		return err
	}
	p, err := s.pack(ctx, name, progress)
	if err != nil {
		return err
	}
	defer p.close()
	if err := p.image.Write(ctx, w, kind, ref, p.stage(stageArchive, p.image.Size())); err != nil {
		return fmt.Errorf("save image %q: %w", name, err)
	}
	return nil
}

// Push puts an image into a registry, as a container image of one layer like Save's, and returns its
// digest there. to is a reference to a registry; by default it is what the image is called. It fails
// with ErrInvalidName, ErrNotFound, or ErrOrigin if to is no such reference, else with the errors of
// oci.Push.
func (s *Store) Push(ctx context.Context, name, to string, progress func(Progress)) (digest string, err error) {
	name, ref, err := nameAndReference(name)
	if err != nil {
		return "", err
	}
	switch {
	case to == "" && !strings.Contains(name, "/"):
		return "", fmt.Errorf("%w: the name %q has no registry in it; say which, as in docker://localhost:5000/%s", ErrOrigin, name, name)
	case to != "":
		if ref, err = oci.ParseReference(to); err == nil && ref.Kind != oci.Registry {
			err = fmt.Errorf("%s is no registry", ref)
		}
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrOrigin, err)
		}
	}
	opts, err := s.registryOptions()
	if err != nil {
		return "", err
	}
	p, err := s.pack(ctx, name, progress)
	if err != nil {
		return "", err
	}
	defer p.close()
	tell := p.stage(stagePush+" to "+ref.Host, p.image.Size())
	opts.Progress = func(l oci.Progress) { tell(l.Done) }
	if digest, err = oci.Push(ctx, p.image, ref, opts); err != nil {
		return "", fmt.Errorf("push image %q: %w", name, err)
	}
	return digest, nil
}

// nameAndReference returns what an image is called here, and in a registry.
func nameAndReference(name string) (string, oci.Reference, error) {
	name, err := ParseName(name)
	if err != nil {
		return "", oci.Reference{}, err
	}
	ref, err := oci.ParseReference(name)
	if err == nil && ref.Tag == "" {
		// By digest alone it was got, but the digest is another one with the kernel's modules gone.
		ref.Tag = strings.TrimPrefix(latestTag, ":")
	}
	ref.Digest = ""
	return name, ref, err
}

// packed is an image that is ready to leave this host.
type packed struct {
	image  *oci.Package
	file   *os.File // of its layer, without a name
	report func(Progress)
}

func (p *packed) close() { _ = p.file.Close() } // what was written to it is of no use any more

// stage begins the second stage, and returns a function that tells of the bytes in it.
func (p *packed) stage(name string, all int64) func(done int64) {
	now := Progress{Stage: name, Done: 1, Total: saveStages}
	p.report(now)
	return bytesOf(p.report, now, all)
}

// pack packs an image. The caller closes it.
func (s *Store) pack(ctx context.Context, name string, report func(Progress)) (*packed, error) {
	img, err := s.Get(name)
	if err != nil {
		return nil, err
	}
	if report == nil {
		report = func(Progress) {}
	}
	p, err := s.packImage(ctx, img, report)
	if err != nil {
		return nil, fmt.Errorf("pack image %q: %w", name, err)
	}
	return p, nil
}

func (s *Store) packImage(ctx context.Context, img *Image, report func(Progress)) (_ *packed, err error) {
	tree, disk, err := treeOf(ctx, img)
	if err != nil {
		return nil, err
	}
	defer disk.Close() //nolint:errcheck // only read
	if err := removeModules(tree, img.KernelVersion); err != nil {
		return nil, err
	}
	cache, err := s.blobs()
	if err != nil {
		return nil, err
	}
	p := &packed{report: report}
	if p.file, err = cache.Scratch(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	now := Progress{Stage: stagePack, Total: saveStages}
	report(now)
	tell := bytesOf(report, now, tree.Bytes())
	layer, err := oci.PackLayer(p.file, func(w io.Writer) error {
		return tree.WriteTar(ctx, &countingWriter{w: w, tell: tell})
	})
	if err != nil {
		return nil, err
	}
	config := img.Config
	config.Created, config.Env = img.Created, lastOfEach(img.Env)
	p.image, err = oci.NewPackage(config, cmp.Or(img.Message, img.Description), layer)
	return p, err
}

// treeOf returns what is in an image, and the file in which the contents are, which the caller closes.
func treeOf(ctx context.Context, img *Image) (*rootfs.Tree, io.Closer, error) {
	// Though it is removed meanwhile, it stays as long as it is open.
	disk, err := os.Open(img.RootFS)
	if err != nil {
		return nil, nil, err
	}
	tree, err := rootfs.FromExt4(ctx, disk, img.RootFSSize, rootfs.Limits{})
	if err != nil {
		return nil, nil, errors.Join(err, disk.Close())
	}
	return tree, disk, nil
}

// removeModules takes the modules of a kernel that is not in the tree out of it.
func removeModules(tree *rootfs.Tree, version string) error {
	const dir = "lib/modules"
	if err := tree.Remove(path.Join(dir, version)); err != nil {
		return err
	}
	if names, err := tree.ReadDir(dir); err != nil || len(names) > 0 {
		return nil // there are others, or there is no directory
	}
	return tree.Remove(dir)
}

// lastOfEach leaves of an environment what counts.
func lastOfEach(env []string) []string {
	var kept []string
	for _, entry := range env {
		name, _, _ := strings.Cut(entry, "=")
		kept = slices.DeleteFunc(kept, func(other string) bool { return strings.HasPrefix(other, name+"=") })
		kept = append(kept, entry)
	}
	return kept
}

// countingWriter tells how much was written.
type countingWriter struct {
	w    io.Writer
	done int64
	tell func(done int64)
}

// Write is io.Writer's.
func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.done += int64(n)
	c.tell(c.done)
	return n, err
}
