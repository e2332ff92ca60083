package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Push puts an image into a registry, under the reference's tag, and returns its digest. What the
// registry has already is not sent. Of the options, Cache and Platform do not count, and mirrors
// are not written to. It fails with ErrReference, ErrAccess or ErrPlainHTTP.
func Push(ctx context.Context, p *Package, ref Reference, opts Options) (digest string, err error) {
	if ref.Kind != Registry || ref.Tag == "" || ref.Digest != "" {
		return "", fmt.Errorf("%w: images are pushed to docker://HOST/NAME:TAG, not to %s", ErrReference, ref)
	}
	opts = opts.withPatience()
	endpoints, err := opts.endpoints(ref)
	if err != nil {
		return "", err
	}
	c, err := connect(ctx, endpoints[len(endpoints)-1], transport.PushScope, opts) // the last is no mirror
	if err != nil {
		return "", err
	}
	defer c.close()
	u := &pusher{connection: c, opts: opts, image: ref.withinHost()}
	return p.Digest(), u.push(ctx, p, ref.Tag)
}

// pusher pushes an image.
type pusher struct {
	*connection
	opts  Options
	image string // as people are told
}

func (u *pusher) push(ctx context.Context, p *Package, tag string) error {
	layer := descriptor{MediaType: types.OCILayer, Digest: p.layer.digest, Size: p.layer.size}
	tell := (&teller{tell: u.opts.Progress}).layer(layer)
	err := u.blob(ctx, layer, func() io.Reader { return p.layer.reader() }, tell)
	if err != nil {
		return err
	}
	config := p.describe(types.OCIConfigJSON, p.config)
	err = u.blob(ctx, config, func() io.Reader { return bytes.NewReader(p.config) }, nil)
	if err != nil {
		return err
	}
	// With the manifest, which may be asked for again, the image is there.
	req, err := u.request(ctx, http.MethodPut, u.at("/manifests/"+tag), bytes.NewReader(p.manifest))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", string(types.OCIManifestSchema1))
	resp, err := u.do(req, http.StatusCreated, http.StatusOK, http.StatusAccepted)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// blob sends a blob, unless it is there. What breaks off begins again, but for the last time.
func (u *pusher) blob(ctx context.Context, d descriptor, open func() io.Reader, tell *layerTeller) error {
	told := func(state State, done int64) {
		if tell != nil {
			tell.report(state, done)
		}
	}
	for failures := 1; ; failures++ {
		there, err := u.has(ctx, d)
		if err == nil && there {
			told(Cached, d.Size)
			return nil
		}
		if err == nil {
			err = u.upload(ctx, d, open(), func(done int64) { told(Uploading, done) })
		}
		if err == nil {
			told(Done, d.Size)
			return nil
		}
		if !errors.Is(err, errBroken) || ctx.Err() != nil || failures >= u.opts.Patience.Attempts {
			return err
		}
		u.opts.Log.Info("an upload broke off, begin it again", "host", u.host, "err", clean(err.Error()))
		if err := sleep(ctx, u.opts.Patience.wait(failures)); err != nil {
			return err
		}
	}
}

func (u *pusher) has(ctx context.Context, d descriptor) (bool, error) {
	req, err := u.request(ctx, http.MethodHead, u.at("/blobs/"+d.Digest), nil)
	if err != nil {
		return false, err
	}
	resp, err := u.client.Do(req)
	if err != nil {
		return false, u.explain(u.image, err)
	}
	_ = resp.Body.Close() // it has none
	// Whatever else it says, that is said again, with a reason, when an upload begins.
	return resp.StatusCode == http.StatusOK, nil
}

// upload sends a blob in one piece.
func (u *pusher) upload(ctx context.Context, d descriptor, r io.Reader, done func(int64)) error {
	req, err := u.request(ctx, http.MethodPost, u.at("/blobs/uploads/"), nil)
	if err != nil {
		return err
	}
	resp, err := u.do(req, http.StatusAccepted)
	if err != nil {
		return err
	}
	_ = resp.Body.Close() // what it says is in its header
	place, err := resp.Location()
	if err != nil {
		return fmt.Errorf("%w: %s does not say where to: %s", ErrInvalid, u.host, clean(err.Error()))
	}
	query := place.Query()
	query.Set("digest", d.Digest)
	place.RawQuery = query.Encode()
	ctx = context.WithValue(ctx, single{}, true)
	req, err = u.request(ctx, http.MethodPut, *place, &told{Reader: r, tell: done})
	if err != nil {
		return err
	}
	req.ContentLength = d.Size
	req.Header.Set("Content-Type", "application/octet-stream")
	if resp, err = u.do(req, http.StatusCreated, http.StatusNoContent); err != nil {
		return err
	}
	return resp.Body.Close()
}

// at is a place in the repository.
func (u *pusher) at(path string) url.URL {
	place := u.url
	place.Path += path
	return place
}

func (u *pusher) request(ctx context.Context, method string, place url.URL, body io.Reader) (*http.Request, error) {
	return http.NewRequestWithContext(ctx, method, place.String(), body)
}

// do makes a request. Only what is expected is an answer.
func (u *pusher) do(req *http.Request, expected ...int) (*http.Response, error) {
	resp, err := u.client.Do(req)
	if err != nil {
		return nil, u.explain(u.image, err)
	}
	if err := transport.CheckError(resp, expected...); err != nil {
		_ = resp.Body.Close() // what it says is read
		broken := req.Context().Value(single{}) != nil && isPassingStatus(resp.StatusCode)
		if err = u.explain(u.image, err); broken {
			err = fmt.Errorf("%w: %w", errBroken, err)
		}
		return nil, err
	}
	return resp, nil
}
