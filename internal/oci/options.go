package oci

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/smolvm/smolvm/internal/oci/blob"
)

// Options are how an image is got. Cache must be set.
type Options struct {
	Cache *blob.Store
	// Platform is "OS/ARCHITECTURE" or "OS/ARCHITECTURE/VARIANT"; "linux/" and the host's own
	// architecture if it is empty.
	Platform string
	// Insecure allows plain HTTP, and TLS with any certificate, for this image. Registries on
	// loopback addresses may use plain HTTP in any case.
	Insecure bool
	// Registries says where to fetch from in place of a registry, or before it.
	Registries Registries
	// RootCAs are those that registries' certificates may be from; the host's if it is nil.
	RootCAs *x509.CertPool
	// Keychain has people's credentials. If it is nil they are those of docker login and, for
	// those without a configuration of Docker, podman login.
	Keychain authn.Keychain
	// MaxSize bounds the bytes of all layers, as stored; 64 GiB if it is 0.
	MaxSize int64
	// Patience is with registries that fail for the moment.
	Patience Patience
	// Progress, if it is not nil, is told how far the layers are. It is called by one goroutine
	// at a time, often, and holds up the work until it returns.
	Progress func(Progress)
	// Log gets what goes wrong on the way and is got over; nothing if it is nil.
	Log *slog.Logger

	wanted platform // Platform, once it has its default

	dial func(ctx context.Context, network, address string) (net.Conn, error) // tests have hosts of their own
}

// Patience says how often and how long a registry is waited for. Each zero field has its default.
type Patience struct {
	// Attempts is how often something is tried that brings nothing new; 6.
	Attempts int
	// Delay is what is waited after the first failure. It doubles with each; 500 ms.
	Delay time.Duration
	// MaxDelay bounds what is waited after a failure, also if the registry asks for more; a minute.
	MaxDelay time.Duration
	// Stall is how long nothing may come; 30 s. There is no bound for the whole of a download.
	Stall time.Duration
}

// The limits on what an image may consist of. Those of registries for what is pushed are lower.
const (
	maxManifest     = 4 << 20
	maxConfig       = 8 << 20
	maxLayers       = 512
	defaultMaxSize  = 64 << 30
	parallelFetches = 3
)

func (o Options) withDefaults() (Options, error) {
	if o.Cache == nil {
		return o, errors.New("no cache given")
	}
	if o.Platform == "" {
		o.Platform = "linux/" + runtime.GOARCH
	}
	var err error
	if o.wanted, err = parsePlatform(o.Platform); err != nil {
		return o, err
	}
	if o.MaxSize < 0 {
		return o, fmt.Errorf("the maximum size is %d bytes", o.MaxSize)
	}
	if o.MaxSize == 0 {
		o.MaxSize = defaultMaxSize
	}
	return o.withPatience(), nil
}

// withPatience fills in what it takes to speak to a registry.
func (o Options) withPatience() Options {
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	o.Patience = o.Patience.withDefaults()
	return o
}

func (p Patience) withDefaults() Patience {
	if p.Attempts <= 0 {
		p.Attempts = 6
	}
	if p.Delay <= 0 {
		p.Delay = 500 * time.Millisecond
	}
	if p.MaxDelay <= 0 {
		p.MaxDelay = time.Minute
	}
	if p.Stall <= 0 {
		p.Stall = 30 * time.Second
	}
	return p
}
