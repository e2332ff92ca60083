package oci

import (
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/smolvm/smolvm/internal/oci/registrytest"
)

// server is a real registry.
type server struct{ *registrytest.Server }

// startServer starts a registry on a loopback port. extra is more of its configuration.
func startServer(t *testing.T, extra string) *server {
	t.Helper()
	s, err := registrytest.New(t.TempDir(), extra)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Kill() })
	return &server{s}
}

// push puts an image or index into the registry.
func (s *server) push(t *testing.T, reference string, image any, opts ...remote.Option) {
	t.Helper()
	if err := s.Push(reference, image, opts...); err != nil {
		t.Fatal(err)
	}
}
