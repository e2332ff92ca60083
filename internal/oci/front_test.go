package oci

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
)

// front stands before a registry, counts what goes through, and makes it fail.
type front struct {
	*httptest.Server
	addr string

	mu       sync.Mutex
	sent     map[string]int64 // bytes of answers, by path
	requests []*http.Request
	// handle may answer a request itself.
	handle func(w http.ResponseWriter, r *http.Request) bool
	// limit may bound how much of an answer goes through. What is to happen then is in after.
	limit func(r *http.Request) (bytes int64, after func())
}

func newFront(t *testing.T, backend string) *front {
	t.Helper()
	f := &front{sent: map[string]int64{}}
	client := &http.Transport{DisableCompression: true}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.requests = append(f.requests, r)
		handle, limit, sent := f.handle, f.limit, f.sent
		f.mu.Unlock()
		if handle != nil && handle(w, r) {
			return
		}
		out := r.Clone(r.Context())
		out.URL.Scheme, out.URL.Host, out.RequestURI = "http", backend, ""
		resp, err := client.RoundTrip(out)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		n, after := int64(-1), func() {}
		if limit != nil {
			n, after = limit(r)
		}
		f.relay(w, resp.Body, func(m int) { f.count(sent, r.URL.Path, m) }, n, after)
	}))
	f.addr = strings.TrimPrefix(f.URL, "http://")
	t.Cleanup(func() {
		f.Close()
		client.CloseIdleConnections()
	})
	return f
}

// relay lets n bytes of an answer through, or all, and cuts the connection if there is more.
func (f *front) relay(w http.ResponseWriter, body io.Reader, count func(int), n int64, after func()) {
	buffer := make([]byte, 32<<10)
	_ = http.NewResponseController(w).Flush()
	for sent := int64(0); ; {
		part := buffer
		if n >= 0 {
			part = buffer[:min(int64(len(buffer)), n-sent)]
			if len(part) == 0 {
				after()
				panic(http.ErrAbortHandler)
			}
		}
		m, err := body.Read(part)
		count(m) // before whoever gets it can look
		if _, werr := w.Write(part[:m]); werr != nil {
			panic(http.ErrAbortHandler)
		}
		_ = http.NewResponseController(w).Flush()
		sent += int64(m)
		if err == io.EOF {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

// count counts what goes through of an answer, unless it was asked for before all was forgotten.
func (f *front) count(sent map[string]int64, path string, bytes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	sent[path] += int64(bytes)
}

// answer has f answer requests, from now on.
func (f *front) answer(handle func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.handle = handle
}

// bound has limit bound answers, from now on.
func (f *front) bound(limit func(r *http.Request) (int64, func())) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limit = limit
}

// cutAlways cuts every answer with the path after n bytes, when after, which may be nil, has returned.
func (f *front) cutAlways(path string, n int64, after func(r *http.Request)) {
	f.bound(func(r *http.Request) (int64, func()) {
		if r.URL.Path != path {
			return -1, func() {}
		}
		return n, func() {
			if after != nil {
				after(r)
			}
		}
	})
}

// cutOnce cuts the first answer with the path after n bytes.
func (f *front) cutOnce(path string, n int64, after func()) {
	var once sync.Once
	f.bound(func(r *http.Request) (int64, func()) {
		limit := int64(-1)
		if r.URL.Path == path {
			once.Do(func() { limit = n })
		}
		return limit, after
	})
}

// seen returns the requests for a path, and how many bytes went back.
func (f *front) seen(path string) ([]*http.Request, int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.requests), func(r *http.Request) bool { return r.URL.Path != path }), f.sent[path]
}

// forget forgets all requests.
func (f *front) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests, f.sent = nil, map[string]int64{}
}
