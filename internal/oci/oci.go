// Package oci gets images from where people have them: registries, directories in OCI image
// layout, and the archives that other tools write.
//
// [ParseReference] reads what a user says, and [Resolve] finds the image for a platform and gets
// all that it consists of into a cache of blobs. Layers are not unpacked here.
//
// Nothing that comes from outside is trusted: everything is bounded, and what is kept is what its
// digest says. What a registry says reaches people only without control characters, and their
// secrets reach neither errors nor logs.
package oci

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/smolvm/smolvm/internal/oci/blob"
)

var (
	// ErrReference is wrapped by errors about a reference that cannot be understood.
	ErrReference = errors.New("invalid image reference")
	// ErrNotFound is wrapped by errors about an image that is not there.
	ErrNotFound = errors.New("no image")
	// ErrPlatform is wrapped by errors about an image that is not made for the platform.
	ErrPlatform = errors.New("image is not made for this platform")
	// ErrAccess is wrapped by errors about a registry that wants a login, or another one.
	ErrAccess = errors.New("access denied")
	// ErrInvalid is wrapped by errors about an image that is malformed, or of a kind that is
	// not understood.
	ErrInvalid = errors.New("unusable image")
	// ErrTooLarge is wrapped by errors about an image that exceeds a limit.
	ErrTooLarge = errors.New("image is too large")
	// ErrPlainHTTP is wrapped by errors about a registry that can be spoken to in the clear only,
	// or leads there, without having been allowed to.
	ErrPlainHTTP = errors.New("plain HTTP is not allowed")
	// ErrStalled is wrapped by errors about a registry that sent nothing for too long.
	ErrStalled = errors.New("nothing came for too long")
)

// Image is an image for one platform, with all that it consists of in the cache.
type Image struct {
	// Reference is the one that was asked for. A name or tag that was found in an archive or
	// layout is filled in.
	Reference Reference
	Digest    string // of the manifest for the platform: "sha256:…"
	Platform  string // "linux/amd64"
	Config    Config
	Layers    []Layer // the lowest first
	Size      int64   // bytes of the manifest, the configuration and all layers, each counted once
	cache     *blob.Store
}

// Config is what an image says of how it is to be run. All of it is the image's own word. The zero
// value says nothing.
type Config struct {
	Entrypoint   []string          `json:"entrypoint,omitempty"`    // what begins its own command
	Cmd          []string          `json:"cmd,omitempty"`           // the rest of its own command
	Env          []string          `json:"env,omitempty"`           // "NAME=value"
	WorkingDir   string            `json:"working_dir,omitempty"`   // from the root, or empty
	User         string            `json:"user,omitempty"`          // name or number, ":GROUP" may follow
	ExposedPorts []string          `json:"exposed_ports,omitempty"` // "80/tcp", sorted by number
	StopSignal   string            `json:"stop_signal,omitempty"`   // what ends its own command: a name or number, as it says it
	Labels       map[string]string `json:"labels,omitempty"`
	Volumes      []string          `json:"volumes,omitempty"` // paths, sorted
	Created      time.Time         `json:"created,omitzero"`  // zero if it does not say
}

// Layer is a layer of an image, which is in the cache.
type Layer struct {
	Digest    string // of the blob
	DiffID    string // digest of what the blob is when it is decompressed
	Size      int64  // bytes of the blob
	MediaType string // it may lie about the compression; see the blob's first bytes
}

// OpenLayer opens a layer as it is stored, so maybe compressed. Reading to the end fails with
// blob.ErrDamaged if the blob is no longer what its digest says; blob.Store.Verify then has it
// fetched again. To be sure that the layer is still there, have a blob.Hold since before Resolve.
func (i *Image) OpenLayer(l Layer) (io.ReadCloser, error) {
	digest, err := blob.ParseDigest(l.Digest)
	if err != nil {
		return nil, fmt.Errorf("open layer: %w", err)
	}
	r, err := i.cache.Open(digest)
	if err != nil {
		return nil, fmt.Errorf("open layer: %w", err)
	}
	return r, nil
}
