package oci

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/smolvm/smolvm/internal/oci/blob"
)

// descriptor is how one part of an image names another.
type descriptor struct {
	MediaType   types.MediaType   `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	URLs        []string          `json:"urls,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// isManifest tells whether what the descriptor names is a manifest or an index.
func (d descriptor) isManifest() bool { return d.MediaType.IsImage() || d.MediaType.IsIndex() }

// document is a manifest or an index; what both have, it must have only one of.
type document struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     types.MediaType `json:"mediaType,omitempty"`
	Manifests     []descriptor    `json:"manifests,omitempty"`
	Config        *descriptor     `json:"config,omitempty"`
	Layers        []descriptor    `json:"layers,omitempty"`
}

// acceptedManifests are the media types of what is understood.
func acceptedManifests() []types.MediaType {
	return []types.MediaType{types.OCIImageIndex, types.OCIManifestSchema1, types.DockerManifestList, types.DockerManifestSchema2}
}

// parseDocument reads a manifest or an index that came as mediaType, which may be empty. The
// result has a media type that is understood.
func parseDocument(data []byte, mediaType types.MediaType) (document, error) {
	var doc document
	if err := json.Unmarshal(data, &doc); err != nil {
		return doc, fmt.Errorf("%w: its manifest is malformed: %s", ErrInvalid, clean(err.Error()))
	}
	if doc.SchemaVersion == 1 || mediaType.IsSchema1() {
		return doc, fmt.Errorf("%w: it is in a format that Docker gave up in 2017; it must be built or pushed again", ErrInvalid)
	}
	switch {
	case doc.MediaType == "":
		doc.MediaType = mediaType
	case mediaType != "" && doc.MediaType != mediaType:
		// Else one could show different people different images under one digest.
		return doc, fmt.Errorf("%w: its manifest says that it is %q, and came as %q", ErrInvalid, clean(string(doc.MediaType)), clean(string(mediaType)))
	}
	if doc.MediaType == "" { // as in layouts, which need not say it
		doc.MediaType = types.OCIManifestSchema1
		if doc.Config == nil {
			doc.MediaType = types.OCIImageIndex
		}
	}
	if doc.SchemaVersion != 2 {
		return doc, fmt.Errorf("%w: its manifest is of version %d", ErrInvalid, doc.SchemaVersion)
	}
	switch {
	case doc.MediaType.IsIndex() && doc.Config == nil && doc.Layers == nil:
	case doc.MediaType.IsImage() && doc.Config != nil && doc.Manifests == nil:
	case doc.MediaType.IsIndex() || doc.MediaType.IsImage():
		return doc, fmt.Errorf("%w: its manifest is not what it says: %s", ErrInvalid, doc.MediaType)
	default:
		return doc, fmt.Errorf("%w: its manifest is of the type %q", ErrInvalid, clean(string(doc.MediaType)))
	}
	return doc, nil
}

// check checks what an image consists of, before any of it is fetched.
func (doc document) check(maxSize int64) error {
	if !doc.Config.MediaType.IsConfig() && doc.Config.MediaType != "" {
		return fmt.Errorf("%w: it is none of a root filesystem, but %q", ErrInvalid, clean(string(doc.Config.MediaType)))
	}
	if err := doc.Config.check(maxConfig); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if len(doc.Layers) > maxLayers {
		return fmt.Errorf("%w: it has %d layers, more than %d", ErrTooLarge, len(doc.Layers), maxLayers)
	}
	total := int64(0)
	for i, layer := range doc.Layers {
		if err := layer.checkLayer(maxSize); err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
		if total += layer.Size; total > maxSize {
			return fmt.Errorf("%w: its layers have more than %d bytes together", ErrTooLarge, maxSize)
		}
	}
	return nil
}

// check checks a descriptor of what may have up to limit bytes.
func (d descriptor) check(limit int64) error {
	if _, err := blob.ParseDigest(d.Digest); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if d.Size < 0 {
		return fmt.Errorf("%w: it says that %s has %d bytes", ErrInvalid, d.Digest, d.Size)
	}
	if d.Size > limit {
		return fmt.Errorf("%w: %s has %d bytes, more than %d", ErrTooLarge, d.Digest, d.Size, limit)
	}
	if len(d.URLs) > 0 {
		return fmt.Errorf("%w: %s would have to be fetched from elsewhere", ErrInvalid, d.Digest)
	}
	return nil
}

func (d descriptor) checkLayer(limit int64) error {
	if !d.MediaType.IsDistributable() {
		return fmt.Errorf("%w: %s is not distributed with the image", ErrInvalid, d.Digest)
	}
	// Docker has no name of its own for what is compressed with zstd, but some tools give it one.
	if !d.MediaType.IsLayer() && d.MediaType != types.DockerUncompressedLayer+".zstd" {
		return fmt.Errorf("%w: it is of the type %q", ErrInvalid, clean(string(d.MediaType)))
	}
	return d.check(limit)
}

// clean makes what comes from outside fit to be shown: short, and without control characters.
func clean(s string) string {
	const longest = 200
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if runes := []rune(s); len(runes) > longest {
		s = string(runes[:longest]) + "…"
	}
	return strings.TrimSpace(s)
}
