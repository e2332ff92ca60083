package oci

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// endpoint is a repository in a registry that an image may be fetched from.
type endpoint struct {
	host, name string // "docker.io", "library/python"
	insecure   bool   // plain HTTP and unverified TLS are allowed
	mirror     bool   // there is another one if it fails
}

// connection is one to an endpoint, authenticated.
type connection struct {
	endpoint
	client    *http.Client
	base      *http.Transport
	url       url.URL // of the repository
	anonymous bool
	pushes    bool // images into it
}

// connect finds out how the registry of an endpoint is spoken to, for transport.PullScope or PushScope.
func connect(ctx context.Context, e endpoint, scope string, o Options) (*connection, error) {
	plain := e.insecure || isLoopback(e.host)
	var nameOpts []name.Option
	if plain {
		nameOpts = append(nameOpts, name.Insecure)
	}
	repository, err := name.NewRepository(e.host+"/"+e.name, nameOpts...)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", ErrReference, clean(err.Error()))
	}
	auth, err := authn.Resolve(ctx, o.Keychain, repository)
	if err != nil {
		return nil, fmt.Errorf("read the credentials for %s: %w", e.host, err)
	}
	c := &connection{endpoint: e, base: o.transport(e.insecure), anonymous: auth == authn.Anonymous, pushes: scope == transport.PushScope}
	attempts := o.Patience.Attempts
	if e.mirror {
		attempts = min(attempts, 2) // it is better to go on to the next
	}
	var rt http.RoundTripper = &guard{next: c.base, plain: plain}
	rt = &patient{next: rt, patience: o.Patience, attempts: attempts, log: o.Log}
	rt = transport.NewUserAgent(rt, "smolvm")
	ctx = context.WithValue(ctx, greeting{}, true)
	rt, err = transport.NewWithContext(ctx, repository.Registry, auth, rt, []string{repository.Scope(scope)})
	if err != nil {
		c.close()
		return nil, c.explain(e.name, err)
	}
	c.client = &http.Client{Transport: rt, CheckRedirect: checkRedirect}
	// The transport sets the scheme by what it found out.
	c.url = url.URL{Scheme: "https", Host: repository.RegistryStr(), Path: "/v2/" + repository.RepositoryStr()}
	return c, nil
}

func (c *connection) close() { c.base.CloseIdleConnections() }

// transport is what makes connections, without any patience.
func (o Options) transport(insecure bool) *http.Transport {
	dial := o.dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: o.Patience.Stall, KeepAlive: 15 * time.Second}).DialContext
	}
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dial,
		ForceAttemptHTTP2:   true,
		TLSClientConfig:     &tls.Config{RootCAs: o.RootCAs, InsecureSkipVerify: insecure, MinVersion: tls.VersionTLS12}, // only if the user said so
		TLSHandshakeTimeout: o.Patience.Stall,
		IdleConnTimeout:     90 * time.Second,
		MaxIdleConnsPerHost: parallelFetches,
		DisableCompression:  true, // blobs are wanted as they are
		// An answer begins with a few headers.
		MaxResponseHeaderBytes: 256 << 10,
	}
}

// guard lets nothing through in the clear unless it is allowed, wherever a registry leads.
type guard struct {
	next  http.RoundTripper
	plain bool
}

// RoundTrip is http.RoundTripper's.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.plain {
		if req.Body != nil {
			_ = req.Body.Close() // as a RoundTripper must
		}
		return nil, fmt.Errorf("%w: %s", ErrPlainHTTP, clean(req.URL.Host))
	}
	return g.next.RoundTrip(req)
}

func checkRedirect(_ *http.Request, via []*http.Request) error {
	const most = 10
	if len(via) >= most {
		return fmt.Errorf("registry redirects more than %d times", most)
	}
	return nil
}

// isLoopback tells whether the host, with or without a port, is this one by its very name.
func isLoopback(host string) bool {
	u := url.URL{Host: host}
	name := strings.ToLower(u.Hostname())
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.IsLoopback()
}

// redact takes out of an error what URLs in it may have of secrets. It changes err.
func redact(err error) error {
	var failed *url.Error
	if errors.As(err, &failed) {
		if u, perr := url.Parse(failed.URL); perr == nil {
			u.RawQuery, u.User, u.Fragment = "", nil, ""
			failed.URL = u.String()
		} else {
			failed.URL = "a URL"
		}
	}
	return err
}
