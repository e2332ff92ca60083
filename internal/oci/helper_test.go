package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/smolvm/smolvm/internal/oci/blob"
	"go.uber.org/goleak"
)

// What makes the test program a process that pulls.
const (
	pullVariable  = "SMOLVM_TEST_PULL"
	cacheVariable = "SMOLVM_TEST_CACHE"
)

func TestMain(m *testing.M) {
	if reference := os.Getenv(pullVariable); reference != "" {
		os.Exit(pullAlone(reference))
	}
	// The library that reads Docker's configuration asks once where it is.
	home, err := os.MkdirTemp("", "smolvm-test-home")
	if err == nil {
		err = os.Setenv("HOME", home)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := os.RemoveAll(home); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(code)
	}))
}

// pullAlone is a process that pulls and does nothing else.
func pullAlone(reference string) int {
	cache, err := blob.Open(os.Getenv(cacheVariable))
	if err == nil {
		var ref Reference
		if ref, err = ParseReference(reference); err == nil {
			_, err = Resolve(context.Background(), ref, Options{Cache: cache, Patience: quick(), Platform: "linux/amd64"})
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// startPull starts a process that pulls. It is killed at the end of the test.
func startPull(t *testing.T, reference, cache string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), pullVariable+"="+reference, cacheVariable+"="+cache)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd
}

// quick is patience for tests.
func quick() Patience {
	return Patience{Attempts: 5, Delay: 10 * time.Millisecond, MaxDelay: 2 * time.Second, Stall: 20 * time.Second}
}

// noise is content that does not compress, and is the same for the same seed.
func noise(seed uint64, size int) []byte {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(data) // it never fails
	return data
}

// tarOf is a tar archive of one file.
func tarOf(t testing.TB, path string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(data)), Format: tar.FormatPAX})
	if err == nil {
		_, err = w.Write(data)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layer makes one of a tar with a file of so many bytes.
func layer(t testing.TB, seed uint64, size int, opts ...tarball.LayerOption) v1.Layer {
	t.Helper()
	data := tarOf(t, fmt.Sprintf("file%d", seed), noise(seed, size))
	opts = append([]tarball.LayerOption{tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching}, opts...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func zstdLayer() []tarball.LayerOption {
	return []tarball.LayerOption{tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd)}
}

// imageOf makes an image for a platform, in the formats of OCI.
func imageOf(t testing.TB, p string, layers ...v1.Layer) v1.Image {
	t.Helper()
	platform, err := parsePlatform(p)
	if err != nil {
		t.Fatal(err)
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if image, err = mutate.AppendLayers(image, layers...); err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant = platform.OS, platform.Architecture, platform.Variant
	config.Created = v1.Time{Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	config.Config = v1.Config{
		Entrypoint: []string{"/entry"}, Cmd: []string{"serve", "80"}, Env: []string{"A=b", "PATH=/bin"}, WorkingDir: "/srv", User: "www:www",
		ExposedPorts: map[string]struct{}{"8080/tcp": {}, "53/udp": {}, "80": {}, "nonsense": {}, "80/tcp": {}, "0/tcp": {}},
		StopSignal:   "SIGQUIT", Labels: map[string]string{"k": "v"}, Volumes: map[string]struct{}{"/var": {}, "/data": {}},
	}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	return image
}

// digestOf is that of an image, index or layer.
func digestOf(t testing.TB, what interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	h, err := what.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func sizeOf(t testing.TB, l v1.Layer) int64 {
	t.Helper()
	n, err := l.Size()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// puller pulls into a cache of its own.
type puller struct {
	Options
	log *syncBuffer
}

func newPuller(t *testing.T) *puller {
	t.Helper()
	cache, err := blob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := &puller{log: &syncBuffer{}}
	p.Options = Options{
		Cache: cache, Patience: quick(), Platform: "linux/amd64", Keychain: authn.NewMultiKeychain(),
		Log: slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return p
}

func (p *puller) pull(t *testing.T, reference string) (*Image, error) {
	t.Helper()
	return p.pullUntil(t.Context(), t, reference)
}

func (p *puller) pullUntil(ctx context.Context, t *testing.T, reference string) (*Image, error) {
	t.Helper()
	ref, err := ParseReference(reference)
	if err != nil {
		t.Fatal(err)
	}
	return Resolve(ctx, ref, p.Options)
}

func (p *puller) mustPull(t *testing.T, reference string) *Image {
	t.Helper()
	image, err := p.pull(t, reference)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// wantLayers checks that the image consists of the layers, and that they are whole.
func wantLayers(t *testing.T, image *Image, layers ...v1.Layer) {
	t.Helper()
	if len(image.Layers) != len(layers) {
		t.Fatalf("layers %+v", image.Layers)
	}
	for i, l := range layers {
		got := image.Layers[i]
		diff, err := l.DiffID()
		if err != nil {
			t.Fatal(err)
		}
		if got.Digest != digestOf(t, l) || got.DiffID != diff.String() || got.Size != sizeOf(t, l) {
			t.Errorf("layer %d is %+v", i, got)
		}
		r, err := image.OpenLayer(got)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			t.Error(err)
		}
		if string(blob.Of(data)) != got.Digest {
			t.Errorf("layer %d has other content", i)
		}
	}
}

// wantNoPartials checks that nothing is left of downloads.
func wantNoPartials(t *testing.T, cache *blob.Store) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(cache.Dir(), "partial"))
	if err != nil || len(entries) != 0 {
		t.Errorf("partial files remain: %v, %v", entries, err)
	}
}

// wantError checks that an error is the one wanted, and says the words.
func wantError(t *testing.T, err, want error, words ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("want %q, got: %v", want, err)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("want %q in it, got: %v", word, err)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("several lines: %q", err)
	}
}

// syncBuffer is a log that many write to.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func readAll(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return data
}
