// Package registrytest runs a real registry, for tests.
package registrytest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Server is a real registry, on a loopback port.
type Server struct {
	Addr   string // where it listens
	root   string // its storage
	config string // path of its configuration
	cmd    *exec.Cmd
}

// New starts a registry that keeps its things in dir. extra is more of its configuration, in YAML.
// The caller owes a Kill.
func New(dir, extra string) (*Server, error) {
	if _, err := exec.LookPath("docker-registry"); err != nil {
		return nil, fmt.Errorf("%w: run scripts/setup.sh", err)
	}
	s := &Server{root: filepath.Join(dir, "registry"), config: filepath.Join(dir, "registry.yml"), Addr: "127.0.0.1:0"}
	if err := s.Start(extra); err != nil {
		return nil, errors.Join(err, s.Kill())
	}
	return s, nil
}

// Start starts it again, where it was.
func (s *Server) Start(extra string) error {
	config := fmt.Sprintf("version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %q}\n%s",
		s.root, s.Addr, extra)
	if err := os.WriteFile(s.config, []byte(config), 0o600); err != nil {
		return err
	}
	cmd := exec.Command("docker-registry", "serve", s.config)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmd = cmd
	listening := regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			s.Addr = m[1]
			go func() { _, _ = io.Copy(io.Discard, stderr) }()
			return nil
		}
	}
	return fmt.Errorf("the registry did not start: %w", errors.Join(lines.Err(), io.ErrUnexpectedEOF))
}

// Kill ends it at once.
func (s *Server) Kill() error {
	if s.cmd == nil {
		return nil
	}
	err := s.cmd.Process.Kill()
	_ = s.cmd.Wait() // it was killed
	s.cmd = nil
	return err
}

// BlobPath is where the registry has a blob.
func (s *Server) BlobPath(digest string) string {
	hex := strings.TrimPrefix(digest, "sha256:")
	return filepath.Join(s.root, "docker/registry/v2/blobs/sha256", hex[:2], hex, "data")
}

// Push puts a v1.Image or v1.ImageIndex into the registry.
func (s *Server) Push(reference string, image any, opts ...remote.Option) error {
	ref, err := name.ParseReference(s.Addr + "/" + reference)
	if err != nil {
		return err
	}
	switch image := image.(type) {
	case v1.Image:
		return remote.Write(ref, image, opts...)
	case v1.ImageIndex:
		return remote.WriteIndex(ref, image, opts...)
	}
	return fmt.Errorf("cannot push a %T", image)
}
