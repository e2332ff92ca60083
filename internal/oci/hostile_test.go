package oci

import (
	"bytes"
	"context"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/smolvm/smolvm/internal/oci/blob"
)

// liar is a registry that says whatever it is told to.
type liar struct {
	*httptest.Server
	addr      string
	manifests map[string][]byte // by tag or digest
	blobs     map[string][]byte // by digest
	kinds     map[string]string // Content-Type of a manifest, by tag
	// answer may answer a request itself.
	answer func(w http.ResponseWriter, r *http.Request) bool
	sent   int64
}

func newLiar(t *testing.T, start func(http.Handler) *httptest.Server) *liar {
	t.Helper()
	l := &liar{manifests: map[string][]byte{}, blobs: map[string][]byte{}, kinds: map[string]string{}}
	l.Server = start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.answer != nil && l.answer(w, r) {
			return
		}
		last := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		data, found := l.blobs[last]
		if strings.Contains(r.URL.Path, "/manifests/") {
			data, found = l.manifests[last]
			w.Header().Set("Content-Type", l.kinds[last])
		}
		if !found && r.URL.Path != "/v2/" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		n, _ := w.Write(data)
		l.sent += int64(n)
	}))
	u, err := url.Parse(l.URL)
	if err != nil {
		t.Fatal(err)
	}
	l.addr = u.Host
	t.Cleanup(l.Close)
	return l
}

func (l *liar) blob(data []byte) string {
	digest := string(blob.Of(data))
	l.blobs[digest] = data
	return digest
}

// parts is an image that a test may change before it is offered.
type parts struct {
	doc    document
	config map[string]any
}

// honest is an image without faults, of one layer.
func (l *liar) honest() *parts {
	content := []byte("not a tar, but nobody looks")
	return &parts{
		doc: document{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []descriptor{
			{MediaType: types.OCIUncompressedLayer, Digest: l.blob(content), Size: int64(len(content))},
		}},
		config: map[string]any{
			"os": "linux", "architecture": "amd64",
			"rootfs": map[string]any{"type": "layers", "diff_ids": []string{string(blob.Of(content))}},
		},
	}
}

// offer offers an image by the tag v1.
func (l *liar) offer(t *testing.T, p *parts) {
	t.Helper()
	if p.doc.Config == nil {
		data := toJSON(t, p.config)
		p.doc.Config = &descriptor{MediaType: types.OCIConfigJSON, Digest: l.blob(data), Size: int64(len(data))}
	}
	l.manifests["v1"], l.kinds["v1"] = toJSON(t, p.doc), string(p.doc.MediaType)
}

func toJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// endless writes until nobody reads any more, and tells how much that was.
func endless(w io.Writer) int64 {
	zeros := make([]byte, 1<<20)
	for total := int64(0); total < 1<<30; {
		n, err := w.Write(zeros)
		total += int64(n)
		if err != nil {
			return total
		}
	}
	return 1 << 30
}

func TestHostileImages(t *testing.T) {
	l := newLiar(t, httptest.NewServer)
	p := newPuller(t)
	p.MaxSize = 1000
	l.offer(t, l.honest())
	p.mustPull(t, l.addr+"/x:v1") // nothing is wrong but what the cases change

	sum := sha512.Sum512([]byte("layer"))
	tests := map[string]struct {
		change func(*parts)
		want   error
		words  string
	}{
		"large config": {func(p *parts) {
			p.doc.Config = &descriptor{MediaType: types.OCIConfigJSON, Digest: someDigest, Size: 100 << 20}
		}, ErrTooLarge, "configuration"},
		"many layers":     {func(p *parts) { p.doc.Layers = slices.Repeat(p.doc.Layers, 513) }, ErrTooLarge, "513 layers"},
		"large layer":     {func(p *parts) { p.doc.Layers[0].Size = 1001 }, ErrTooLarge, "layer 1"},
		"large together":  {func(p *parts) { p.doc.Layers[0].Size = 501; p.doc.Layers = slices.Repeat(p.doc.Layers, 2) }, ErrTooLarge, "1000 bytes together"},
		"negative size":   {func(p *parts) { p.doc.Layers[0].Size = -1 }, ErrInvalid, "-1 bytes"},
		"md5":             {func(p *parts) { p.doc.Layers[0].Digest = "md5:d41d8cd98f00b204e9800998ecf8427e" }, blob.ErrAlgorithm, "sha256:"},
		"path as digest":  {func(p *parts) { p.doc.Layers[0].Digest = "sha256:../../../../etc/passwd" }, blob.ErrAlgorithm, "64 digits"},
		"no digest":       {func(p *parts) { p.doc.Config = &descriptor{MediaType: types.OCIConfigJSON} }, blob.ErrAlgorithm, "sha256:"},
		"md5 diff ID":     {func(p *parts) { p.config["rootfs"] = map[string]any{"diff_ids": []string{"md5:00"}} }, blob.ErrAlgorithm, "sha256:"},
		"foreign layer":   {func(p *parts) { p.doc.Layers[0].MediaType = types.DockerForeignLayer }, ErrInvalid, "not distributed"},
		"layer elsewhere": {func(p *parts) { p.doc.Layers[0].URLs = []string{"http://169.254.169.254/"} }, ErrInvalid, "from elsewhere"},
		"config elsewhere": {func(p *parts) {
			p.doc.Config = &descriptor{Digest: someDigest, URLs: []string{"http://169.254.169.254/"}}
		}, ErrInvalid, "from elsewhere"},
		"no layer": {func(p *parts) { p.doc.Layers[0].MediaType = "text/plain" }, ErrInvalid, "text/plain"},
		"chart": {func(p *parts) {
			p.doc.Config = &descriptor{MediaType: "application/vnd.cncf.helm.config.v1+json", Digest: someDigest}
		}, ErrInvalid, "helm"},
		"layers missing":   {func(p *parts) { p.doc.Layers = nil }, ErrInvalid, "0 layers"},
		"malformed config": {func(p *parts) { p.config["created"] = "yesterday" }, ErrInvalid, "malformed"},
		"other rootfs":     {func(p *parts) { p.config["rootfs"] = map[string]any{"type": "ostree"} }, ErrInvalid, "ostree"},
		"two at once":      {func(p *parts) { p.doc.Manifests = p.doc.Layers }, ErrInvalid, "not what it says"},
		"old":              {func(p *parts) { p.doc.SchemaVersion = 1 }, ErrInvalid, "gave up"},
		"new":              {func(p *parts) { p.doc.SchemaVersion = 3 }, ErrInvalid, "version 3"},
		"other type":       {func(p *parts) { p.doc.MediaType = "text/html" }, ErrInvalid, "text/html"},
		"layer is short":   {func(p *parts) { p.doc.Layers[0].Size += 5 }, ErrInvalid, "27 bytes"},
		"layer is long":    {func(p *parts) { p.doc.Layers[0].Size -= 5 }, ErrInvalid, "27 bytes"},
		"layer is missing": {func(p *parts) { p.doc.Layers[0].Digest = "sha512:" + hex.EncodeToString(sum[:]) }, ErrInvalid, "a part of x:v1 is not there"},
		"other platform":   {func(p *parts) { p.config["architecture"] = "riscv64\x1b[2J" }, ErrPlatform, "linux/riscv64 [2J"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			image := l.honest()
			p := newPuller(t)
			p.MaxSize = 1000
			test.change(image)
			l.offer(t, image)
			_, err := p.pull(t, l.addr+"/x:v1")
			wantError(t, err, test.want, test.words)
			wantNoPartials(t, p.Cache)
		})
	}
}

func TestHostileManifests(t *testing.T) {
	l := newLiar(t, httptest.NewServer)
	image := l.honest()
	l.offer(t, image)
	good := l.manifests["v1"]
	for name, test := range map[string]struct {
		data  string
		kind  string
		want  error
		words string
	}{
		"nothing":       {"", string(types.OCIManifestSchema1), ErrInvalid, "malformed"},
		"no JSON":       {"<html>\x1b]0;x\a", "text/html", ErrInvalid, "malformed"},
		"another type":  {string(good), string(types.DockerManifestSchema2), ErrInvalid, "and came as"},
		"deep":          {strings.Repeat("[", 1<<20), "", ErrInvalid, "malformed"},
		"signed by old": {`{"schemaVersion":1}`, string(types.DockerManifestSchema1Signed), ErrInvalid, "gave up"},
		"empty index":   {`{"schemaVersion":2,"manifests":[]}`, string(types.OCIImageIndex), ErrPlatform, "nothing says"},
		"index of text": {
			`{"schemaVersion":2,"manifests":[{"mediaType":"text/plain","digest":"` + someDigest + `","platform":{"os":"linux","architecture":"amd64"}}]}`,
			string(types.OCIImageIndex), ErrInvalid, "text/plain",
		},
		"large in index": {
			`{"schemaVersion":2,"manifests":[{"mediaType":"` + string(types.OCIManifestSchema1) + `","size":1000000000,"digest":"` + someDigest + `"}]}`,
			string(types.OCIImageIndex), ErrTooLarge, "1000000000",
		},
	} {
		t.Run(name, func(t *testing.T) {
			l.manifests["v1"], l.kinds["v1"] = []byte(test.data), test.kind
			_, err := newPuller(t).pull(t, l.addr+"/x:v1")
			wantError(t, err, test.want, test.words)
			if strings.ContainsAny(fmt.Sprint(err), "\x1b\a") {
				t.Errorf("control characters: %q", err)
			}
		})
	}
	for _, kind := range []string{string(types.OCIManifestSchema1) + "; charset=utf-8", "application/json", ""} {
		l.manifests["v1"], l.kinds["v1"] = good, kind
		if _, err := newPuller(t).pull(t, l.addr+"/x:v1"); err != nil {
			t.Errorf("a manifest that comes as %q: %v", kind, err)
		}
	}
	// An index within an index is followed, but not for ever.
	inner := fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[{"mediaType":%q,"size":%d,"digest":%q}]}`, types.OCIManifestSchema1, len(good), blob.Of(good))
	l.manifests[string(blob.Of(good))] = good
	for depth := range 4 {
		l.manifests["v1"], l.kinds["v1"] = inner, string(types.OCIImageIndex)
		_, err := newPuller(t).pull(t, l.addr+"/x:v1")
		if depth < 2 && err != nil {
			t.Errorf("%d indexes within an index: %v", depth, err)
		} else if depth >= 2 {
			wantError(t, err, ErrInvalid, "no end")
		}
		l.manifests[string(blob.Of(inner))] = inner
		inner = fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[{"mediaType":%q,"size":%d,"digest":%q}]}`, types.OCIImageIndex, len(inner), blob.Of(inner))
	}
}

// TestEndlessAnswers: nothing is read beyond its bound, whatever a registry sends.
func TestEndlessAnswers(t *testing.T) {
	l := newLiar(t, httptest.NewServer)
	image := l.honest()
	l.offer(t, image)
	layer := image.doc.Layers[0].Digest
	config := image.doc.Config.Digest
	for part, want := range map[string]error{"/v2/": nil, "/manifests/v1": ErrTooLarge, "/blobs/" + config: ErrInvalid, "/blobs/" + layer: ErrInvalid} {
		sent := make(chan int64, 1)
		l.answer = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, part) {
				return false
			}
			if part == "/v2/" {
				w.WriteHeader(http.StatusTeapot)
			}
			sent <- endless(w)
			return true
		}
		p := newPuller(t)
		_, err := p.pull(t, l.addr+"/x:v1")
		if err == nil {
			t.Errorf("%s: accepted", part)
		}
		if want != nil {
			wantError(t, err, want)
		}
		if n := <-sent; n > 64<<20 {
			t.Errorf("%s: %d bytes were read", part, n)
		}
		wantNoPartials(t, p.Cache)
	}
}

// TestWrongManifest: a manifest must be what the digest says, that of the user or of the registry.
func TestWrongManifest(t *testing.T) {
	l := newLiar(t, httptest.NewServer)
	l.offer(t, l.honest())
	l.manifests[someDigest], l.kinds[someDigest] = l.manifests["v1"], l.kinds["v1"]
	p := newPuller(t)
	_, err := p.pull(t, l.addr+"/x:v1@"+someDigest)
	wantError(t, err, blob.ErrDigest, someDigest, string(blob.Of(l.manifests["v1"])))
	l.answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Docker-Content-Digest", someDigest)
		return false
	}
	_, err = p.pull(t, l.addr+"/x:v1")
	wantError(t, err, blob.ErrDigest)
	l.answer = nil
	sum := sha512.Sum512(l.manifests["v1"])
	digest := "sha512:" + hex.EncodeToString(sum[:])
	l.manifests[digest], l.kinds[digest] = l.manifests["v1"], l.kinds["v1"]
	if image := p.mustPull(t, l.addr+"/x@"+digest); image.Digest != digest {
		t.Errorf("got %s", image.Digest)
	}
}

// TestPlainHTTP: nothing goes in the clear unless it is allowed to, wherever a registry leads.
func TestPlainHTTP(t *testing.T) {
	plain := newLiar(t, httptest.NewServer)
	secure := newLiar(t, httptest.NewTLSServer)
	image := secure.honest()
	secure.offer(t, image)
	plain.offer(t, plain.honest())
	secure.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		http.Redirect(w, r, plain.URL+r.URL.Path+"?signature=s3cr3t", http.StatusTemporaryRedirect)
		return true
	}
	// The host's name is not that of a loopback address, for which it would be allowed.
	remote := func(t *testing.T, l *liar) *puller {
		p := newPuller(t)
		p.RootCAs = x509.NewCertPool()
		p.RootCAs.AddCert(secure.Certificate())
		p.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if strings.HasPrefix(address, "example.com:") {
				address = l.addr
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		return p
	}
	const reference = "example.com:5000/x:v1"

	p := remote(t, secure)
	_, err := p.pull(t, reference)
	wantError(t, err, ErrPlainHTTP, "speak to example.com:5000", "said to be insecure")
	if strings.Contains(err.Error(), "s3cr3t") || strings.Contains(p.log.String(), "s3cr3t") {
		t.Errorf("tells a secret: %v, log: %s", err, p.log)
	}
	if plain.sent > 0 {
		t.Errorf("%d bytes came in the clear", plain.sent)
	}
	p.Insecure = true
	p.mustPull(t, reference) // the redirection as such works

	p = remote(t, plain)
	_, err = p.pull(t, reference)
	wantError(t, err, ErrPlainHTTP, "speak to example.com:5000")
	p.Registries.Rules = []Rule{{Prefix: "example.com:5000", Insecure: true}}
	p.mustPull(t, reference)

	// To whom the certificate belongs that nobody knows is not said.
	p = remote(t, secure)
	p.RootCAs = x509.NewCertPool()
	if _, err = p.pull(t, reference); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("with an unknown certificate: %v", err)
	}
	p.Insecure = true
	p.mustPull(t, reference)

	// The registry's answer to the very first request leads elsewhere.
	secure.answer = func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, plain.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
	_, err = remote(t, secure).pull(t, reference)
	wantError(t, err, ErrPlainHTTP)
	secure.answer = func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
	if _, err = remote(t, secure).pull(t, reference); err == nil || !strings.Contains(err.Error(), "redirect") {
		t.Errorf("led in a circle: %v", err)
	}
}

// TestResumeThroughRedirection: what is asked for in parts is so also where a registry leads.
func TestResumeThroughRedirection(t *testing.T) {
	s := startServer(t, "")
	l := layer(t, 1, 1<<20)
	s.push(t, "app:v1", imageOf(t, "linux/amd64", l))
	storage := newFront(t, s.Addr)
	path := "/v2/app/blobs/" + digestOf(t, l)
	storage.cutOnce(path, 500_000, func() {})
	f := newFront(t, s.Addr)
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != path {
			return false
		}
		http.Redirect(w, r, storage.URL+path+"?signature=s3cr3t", http.StatusTemporaryRedirect)
		return true
	})
	wantLayers(t, newPuller(t).mustPull(t, f.addr+"/app:v1"), l)
	wantBytes(t, storage, l, path, 2)
}

func TestClean(t *testing.T) {
	for text, want := range map[string]string{
		"plain ä": "plain ä", "a\x1b[1mb\r\n": "a [1mb", "\xff": "?", strings.Repeat("x", 300): strings.Repeat("x", 200) + "…", "a\u202eb\u2028c": "a b c",
	} {
		if got := clean(text); got != want {
			t.Errorf("%q becomes %q", text, got)
		}
	}
}

func FuzzParseDocument(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"x","digest":"`+someDigest+`","size":1},"layers":[{"size":9223372036854775807},{"size":9223372036854775807}]}`), "")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"platform":{"os":"linux"}}]}`), string(types.OCIImageIndex))
	f.Fuzz(func(t *testing.T, data []byte, kind string) {
		doc, err := parseDocument(data, types.MediaType(kind))
		if err != nil {
			return
		}
		if doc.MediaType.IsIndex() {
			if d, err := (platform{OS: "linux", Architecture: "amd64"}).choose(doc.Manifests); err == nil && len(doc.Manifests) == 0 {
				t.Errorf("chose %+v of nothing", d)
			}
			return
		}
		if err := doc.check(1 << 40); err != nil {
			return
		}
		total := int64(0)
		for _, l := range doc.Layers {
			total += l.Size
			if l.Size < 0 || total < 0 || total > 1<<40 {
				t.Errorf("a layer of %d bytes, %d with those below", l.Size, total)
			}
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","architecture":"amd64","config":{"ExposedPorts":{"80/tcp":{},"x":{}}},"rootfs":{"diff_ids":["`+someDigest+`"]}}`), 1)
	f.Fuzz(func(t *testing.T, data []byte, layers int) {
		c, err := parseConfig(data, layers)
		if err != nil {
			return
		}
		if len(c.RootFS.DiffIDs) != layers {
			t.Errorf("%d layers", len(c.RootFS.DiffIDs))
		}
		for _, port := range c.public().ExposedPorts {
			number, protocol, _ := strings.Cut(port, "/")
			if n, err := strconv.Atoi(number); err != nil || n < 1 || n > 65535 || protocol == "" {
				t.Errorf("port %q", port)
			}
		}
	})
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 5-9/10", int64(5), int64(10))
	f.Add("bytes 5-9/*", int64(5), int64(10))
	f.Fuzz(func(t *testing.T, header string, offset, size int64) {
		if offset < 0 || size <= offset {
			return // it is never asked for
		}
		whole := fmt.Sprintf("bytes %d-%d/%d", offset, size-1, size)
		if !isRest(whole, offset, size) {
			t.Errorf("%q is not the rest", whole)
		}
		if isRest(header, offset, size) && !bytes.Contains([]byte(header), strconv.AppendInt(nil, offset, 10)) {
			t.Errorf("%q is the rest from %d", header, offset)
		}
	})
}
