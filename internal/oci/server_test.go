package oci

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// server is a real registry.
type server struct {
	addr, root string // where it listens, and its storage
	config     string
	cmd        *exec.Cmd
}

// startServer starts a registry on a loopback port. extra is more of its configuration.
func startServer(t *testing.T, extra string) *server {
	t.Helper()
	if _, err := exec.LookPath("docker-registry"); err != nil {
		t.Fatal("docker-registry is missing: run scripts/setup.sh")
	}
	s := &server{root: t.TempDir(), addr: "127.0.0.1:0"}
	s.config = filepath.Join(t.TempDir(), "config.yml")
	t.Cleanup(s.kill)
	s.start(t, extra)
	return s
}

// start starts it at s.addr.
func (s *server) start(t *testing.T, extra string) {
	t.Helper()
	config := fmt.Sprintf("version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %q}\n%s",
		s.root, s.addr, extra)
	if err := os.WriteFile(s.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", s.config)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.cmd = cmd
	listening := regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			s.addr = m[1]
			go func() { _, _ = io.Copy(io.Discard, stderr) }()
			return
		}
	}
	t.Fatalf("the registry did not start: %v", lines.Err())
}

func (s *server) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// blobPath is where the registry has a blob.
func (s *server) blobPath(digest string) string {
	hex := strings.TrimPrefix(digest, "sha256:")
	return filepath.Join(s.root, "docker/registry/v2/blobs/sha256", hex[:2], hex, "data")
}

// push puts an image or index into the registry.
func (s *server) push(t *testing.T, reference string, image any, opts ...remote.Option) {
	t.Helper()
	ref, err := name.ParseReference(s.addr + "/" + reference)
	if err != nil {
		t.Fatal(err)
	}
	switch image := image.(type) {
	case v1.Image:
		err = remote.Write(ref, image, opts...)
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, image, opts...)
	}
	if err != nil {
		t.Fatal(err)
	}
}
