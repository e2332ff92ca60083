package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/smolvm/smolvm/internal/oci/blob"
)

// registry is a source of images: the endpoints that one may be fetched from.
type registry struct {
	ref       Reference
	opts      Options
	endpoints []endpoint

	mu          sync.Mutex
	connections []*connection // of the endpoints; nil where there is none yet
	serving     int           // the endpoint that had the image
}

func newRegistry(ref Reference, opts Options) (*registry, error) {
	endpoints, err := opts.endpoints(ref)
	if err != nil {
		return nil, err
	}
	return &registry{ref: ref, opts: opts, endpoints: endpoints, connections: make([]*connection, len(endpoints))}, nil
}

// endpoints are where an image is to be asked for, in order. It fails with ErrAccess if that is
// nowhere.
func (o Options) endpoints(ref Reference) ([]endpoint, error) {
	endpoints := o.Registries.endpoints(ref, o.Insecure)
	if len(endpoints) == 0 {
		return nil, fmt.Errorf("%w: images of %s/%s are blocked on this host", ErrAccess, ref.Host, ref.Name)
	}
	return endpoints, nil
}

func (r *registry) reference() Reference { return r.ref }

// Close lets all connections go.
func (r *registry) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.connections {
		if c != nil {
			c.close()
		}
	}
	return nil
}

// try calls f with connections to the endpoints until it succeeds, beginning with the one that
// had the image.
func (r *registry) try(ctx context.Context, f func(*connection) error) error {
	r.mu.Lock()
	first := r.serving
	r.mu.Unlock()
	for i := first; ; i++ {
		c, err := r.connection(ctx, i)
		if err == nil {
			err = f(c)
		}
		if err == nil {
			r.mu.Lock()
			r.serving = max(r.serving, i)
			r.mu.Unlock()
			return nil
		}
		if ctx.Err() != nil || i == len(r.endpoints)-1 {
			return err
		}
		r.opts.Log.Warn("a mirror does not have the image, try the next place",
			"mirror", r.endpoints[i].host, "next", r.endpoints[i+1].host, "err", err)
	}
}

func (r *registry) connection(ctx context.Context, i int) (*connection, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.connections[i]; c != nil {
		return c, nil
	}
	c, err := connect(ctx, r.endpoints[i], transport.PullScope, r.opts)
	r.connections[i] = c
	return c, err
}

// root fetches the manifest or index that the reference names.
func (r *registry) root(ctx context.Context) (desc descriptor, data []byte, err error) {
	identifier := r.ref.Tag
	if r.ref.Digest != "" {
		identifier = r.ref.Digest
	}
	err = r.try(ctx, func(c *connection) error {
		for failures := 1; ; failures++ {
			desc, data, err = r.fetchRoot(ctx, c, identifier)
			if !errors.Is(err, errBroken) || ctx.Err() != nil || failures >= r.opts.Patience.Attempts {
				return err
			}
			if err := sleep(ctx, r.opts.Patience.wait(failures)); err != nil {
				return err
			}
		}
	})
	return desc, data, err
}

func (r *registry) fetchRoot(ctx context.Context, c *connection, identifier string) (descriptor, []byte, error) {
	resp, err := c.get(ctx, r.ref.withinHost(), "/manifests/"+identifier, 0)
	if err != nil {
		return descriptor{}, nil, err
	}
	defer resp.Body.Close()
	data, err := readBounded(resp.Body, maxManifest)
	if err != nil {
		return descriptor{}, nil, fmt.Errorf("read manifest from %s: %w", c.host, err)
	}
	digest := blob.Of(data)
	// Where the registry says the digest, it must be right: what came may have been changed.
	for _, said := range []string{r.ref.Digest, resp.Header.Get("Docker-Content-Digest")} {
		if said == "" {
			continue
		}
		d, err := blob.ParseDigest(said)
		if err != nil {
			return descriptor{}, nil, fmt.Errorf("%w: manifest from %s: %w", ErrInvalid, c.host, err)
		}
		if !d.Matches(data) {
			return descriptor{}, nil, fmt.Errorf("manifest from %s: %w: %s is asked for or promised, %s came", c.host, blob.ErrDigest, d, digest)
		}
		if said == r.ref.Digest {
			digest = d // which may be of another algorithm
		}
	}
	return descriptor{MediaType: mediaType(resp), Digest: string(digest), Size: int64(len(data))}, data, nil
}

// mediaType is what the registry says that it sends, or empty if that says nothing about manifests.
func mediaType(resp *http.Response) types.MediaType {
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || kind == "application/json" || kind == "text/plain" || kind == "application/octet-stream" {
		return ""
	}
	return types.MediaType(kind)
}

// open opens a blob or manifest from offset on, or from its beginning if the registry cannot do
// better.
func (r *registry) open(ctx context.Context, d descriptor, offset int64) (body io.ReadCloser, start int64, err error) {
	path := "/blobs/" + d.Digest
	if d.isManifest() {
		path = "/manifests/" + d.Digest
	}
	err = r.try(ctx, func(c *connection) error {
		body, start, err = r.openAt(ctx, c, path, d.Size, offset)
		return err
	})
	return body, start, err
}

func (r *registry) openAt(ctx context.Context, c *connection, path string, size, offset int64) (io.ReadCloser, int64, error) {
	resp, err := c.get(ctx, r.ref.withinHost(), path, offset)
	if err != nil {
		return nil, 0, err
	}
	switch {
	case resp.StatusCode == http.StatusPartialContent && isRest(resp.Header.Get("Content-Range"), offset, size):
		return resp.Body, offset, nil
	case resp.StatusCode == http.StatusOK && (resp.ContentLength == -1 || resp.ContentLength == size):
		return resp.Body, 0, nil
	}
	_ = resp.Body.Close() // it is not wanted
	if resp.StatusCode != http.StatusOK && offset > 0 {
		return r.openAt(ctx, c, path, size, 0)
	}
	return nil, 0, fmt.Errorf("%w: %s has %d bytes at %s, not %d", ErrInvalid, path, resp.ContentLength, c.host, size)
}

// isRest tells whether the header of this name is that of all from offset on.
func isRest(contentRange string, offset, size int64) bool {
	span, total, _ := strings.Cut(strings.TrimPrefix(contentRange, "bytes "), "/")
	first, last, _ := strings.Cut(span, "-")
	is := func(text string, n int64) bool { return text == strconv.FormatInt(n, 10) }
	return is(first, offset) && is(last, size-1) && (total == "*" || is(total, size))
}

// get asks for something in the repository. An answer that has it is the only one returned.
func (c *connection) get(ctx context.Context, image, path string, offset int64) (*http.Response, error) {
	u := c.url
	u.Path += path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	accepted := []int{http.StatusOK}
	if strings.HasPrefix(path, "/manifests/") {
		for _, t := range acceptedManifests() {
			req.Header.Add("Accept", string(t))
		}
	} else if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		accepted = append(accepted, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, c.explain(image, err)
	}
	if err := transport.CheckError(resp, accepted...); err != nil {
		_ = resp.Body.Close() // what it says is read
		return nil, c.explain(image, err)
	}
	return resp, nil
}

// readBounded reads all, unless that is more than limit.
func readBounded(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)
	}
	return data, nil
}
