package oci

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// failing answers the first so many requests for each path with a status.
func failing(status int, header http.Header, times int) func(http.ResponseWriter, *http.Request) bool {
	var mu sync.Mutex
	failed := map[string]int{}
	return func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if failed[r.URL.Path]++; failed[r.URL.Path] > times {
			return false
		}
		for key, values := range header {
			w.Header()[key] = values
		}
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"errors":[{"code":"BUSY","message":"come \u001b[31mback\nlater"}]}`)
		return true
	}
}

// TestRegistryIsBusy: what fails for the moment is asked for again, but not for ever.
func TestRegistryIsBusy(t *testing.T) {
	s := startServer(t, "")
	l := layer(t, 1, 1000)
	s.push(t, "app:v1", imageOf(t, "linux/amd64", l))
	for _, status := range []int{429, 500, 502, 503, 504} {
		f := newFront(t, s.Addr)
		f.answer(failing(status, nil, 2))
		p := newPuller(t)
		wantLayers(t, p.mustPull(t, f.addr+"/app:v1"), l)
		if asked, _ := f.seen("/v2/app/manifests/v1"); len(asked) != 3 {
			t.Errorf("%d: the manifest was asked for %d times", status, len(asked))
		}
		if !strings.Contains(p.log.String(), "registry fails, ask it again") {
			t.Errorf("log: %s", p.log)
		}
		f.forget()
		f.answer(failing(status, nil, 1000))
		_, err := p.pull(t, f.addr+"/app:v1")
		if err == nil || !strings.Contains(err.Error(), fmt.Sprint(status)) || !strings.Contains(err.Error(), "come  [31mback later") {
			t.Errorf("%d: %q", status, err)
		}
		if asked, _ := f.seen("/v2/"); len(asked) != p.Patience.Attempts {
			t.Errorf("%d: asked %d times", status, len(asked))
		}
	}
	f := newFront(t, s.Addr)
	f.answer(failing(http.StatusTeapot, nil, 1))
	if _, err := newPuller(t).pull(t, f.addr+"/app:v1"); err == nil || !strings.Contains(err.Error(), "418") {
		t.Errorf("what is nobody's passing fault: %v", err)
	}
	if asked, _ := f.seen("/v2/"); len(asked) != 1 {
		t.Errorf("it was asked %d times", len(asked))
	}
}

// TestRetryAfter: a registry is not asked before the time that it says, unless that is too long.
func TestRetryAfter(t *testing.T) {
	s := startServer(t, "")
	l := layer(t, 1, 1000)
	s.push(t, "app:v1", imageOf(t, "linux/amd64", l))
	for after, want := range map[string]time.Duration{"1": time.Second, "3600": 2 * time.Second} {
		f := newFront(t, s.Addr)
		var mu sync.Mutex
		var times []time.Time
		busy := failing(http.StatusTooManyRequests, http.Header{"Retry-After": {after}}, 1)
		f.answer(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			mu.Lock()
			defer mu.Unlock()
			times = append(times, time.Now())
			return busy(w, r)
		})
		wantLayers(t, newPuller(t).mustPull(t, f.addr+"/app:v1"), l)
		if waited := times[1].Sub(times[0]); waited < want || waited > time.Minute {
			t.Errorf("Retry-After %s: came back after %v", after, waited)
		}
	}
}

func TestReadRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": -1, "x": -1, "-1": -1, "0": 0, "7": 7 * time.Second, "4000000000": 24 * time.Hour, "99999999999999999999": -1,
		now.Add(time.Minute).Format(http.TimeFormat): time.Minute, now.Add(-time.Minute).Format(http.TimeFormat): 0,
	} {
		if got, given := retryAfter(value, now); given != (want >= 0) || given && got != want {
			t.Errorf("%q is %v, %v", value, got, given)
		}
	}
}

func TestWaits(t *testing.T) {
	p := Patience{}.withDefaults()
	for failures, most := range map[int]time.Duration{1: 500 * time.Millisecond, 3: 2 * time.Second, 7: 32 * time.Second, 8: time.Minute, 1000: time.Minute} {
		for range 100 {
			if wait := p.wait(failures); wait > most || wait < most*3/4 {
				t.Fatalf("after %d failures it waits %v", failures, wait)
			}
		}
	}
}

// TestSlowAndStalled: a registry may be as slow as it likes, but must send something now and then.
func TestSlowAndStalled(t *testing.T) {
	s := startServer(t, "")
	l := layer(t, 1, 1000)
	s.push(t, "app:v1", imageOf(t, "linux/amd64", l))
	size := int(sizeOf(t, l))
	path := "/v2/app/blobs/" + digestOf(t, l)
	p := newPuller(t)
	p.Patience.Stall, p.Patience.Attempts = time.Second, 2

	f := newFront(t, s.Addr)
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != path {
			return false
		}
		data := readAll(t, s.BlobPath(digestOf(t, l)))
		tick := time.NewTicker(p.Patience.Stall / 8)
		defer tick.Stop()
		const parts = 12 // half as long again as it may be silent
		for i := range parts {
			<-tick.C
			_, _ = w.Write(data[i*size/parts : (i+1)*size/parts])
			_ = http.NewResponseController(w).Flush()
		}
		return true
	})
	wantLayers(t, p.mustPull(t, f.addr+"/app:v1"), l)

	p = newPuller(t)
	p.Patience.Stall, p.Patience.Attempts = 500*time.Millisecond, 2
	f.cutAlways(path, 0, func(r *http.Request) { <-r.Context().Done() })
	f.answer(nil)
	f.forget()
	_, err := p.pull(t, f.addr+"/app:v1")
	wantError(t, err, ErrStalled, "layer "+digestOf(t, l))
	if asked, _ := f.seen(path); len(asked) != 2 {
		t.Errorf("it was asked for %d times", len(asked))
	}
	// A registry that does not even answer.
	f.answer(func(_ http.ResponseWriter, r *http.Request) bool {
		<-r.Context().Done()
		return true
	})
	_, err = p.pull(t, f.addr+"/app:v1")
	wantError(t, err, ErrStalled, "speak to "+f.addr)
}

// TestCalledOffWhileWaiting: a wait for a registry ends with the context.
func TestCalledOffWhileWaiting(t *testing.T) {
	s := startServer(t, "")
	f := newFront(t, s.Addr)
	ctx, cancel := context.WithCancel(t.Context())
	f.answer(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusTooManyRequests)
		cancel()
		return true
	})
	p := newPuller(t)
	p.Patience.MaxDelay = time.Hour
	if _, err := p.pullUntil(ctx, t, f.addr+"/app:v1"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestNobodyThere: a host without a registry is tried again, and a name without a host is not.
func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	p := newPuller(t)
	_, err = p.pull(t, addr+"/app:v1")
	if err == nil || !strings.Contains(err.Error(), "refused") || !strings.Contains(p.log.String(), "ask it again") {
		t.Errorf("got %v, log: %s", err, p.log)
	}
	p = newPuller(t)
	p.dial = func(_ context.Context, _, address string) (net.Conn, error) {
		return nil, &net.DNSError{Err: "no such host", Name: address, IsNotFound: true}
	}
	_, err = p.pull(t, "registry.example/app:v1")
	if err == nil || !strings.Contains(err.Error(), "no such host") || strings.Contains(p.log.String(), "ask it again") {
		t.Errorf("got %v, log: %s", err, p.log)
	}
}

// TestMirrors: mirrors are asked first, and what they don't have comes from the registry.
func TestMirrors(t *testing.T) {
	s, m := startServer(t, ""), startServer(t, "")
	first, second := layer(t, 1, 1000), layer(t, 2, 1000)
	here, there := imageOf(t, "linux/amd64", first), imageOf(t, "linux/amd64", first, second)
	s.push(t, "team/app:v1", here)
	s.push(t, "team/app:v2", there)
	m.push(t, "cache/team/app:v1", here)
	origin, mirror := newFront(t, s.Addr), newFront(t, m.Addr)
	p := newPuller(t)
	p.Registries = Registries{Rules: []Rule{{
		Prefix: origin.addr, Mirrors: []Mirror{{Location: "127.0.0.1:1"}, {Location: "http://" + mirror.addr + "/cache/"}},
	}}}
	asked := func(f *front, part string) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, r := range f.requests {
			if strings.Contains(r.URL.Path, part) {
				return true
			}
		}
		return false
	}
	image := p.mustPull(t, origin.addr+"/team/app:v1")
	wantLayers(t, image, first)
	if asked(origin, "/") || !asked(mirror, "/v2/cache/team/app/blobs/") {
		t.Error("it did not come from the mirror")
	}
	if image.Reference.Host != origin.addr {
		t.Errorf("it is known as %s", image.Reference.Familiar())
	}
	wantLayers(t, p.mustPull(t, origin.addr+"/team/app:v2"), first, second)
	if !asked(origin, "/blobs/"+digestOf(t, second)) || asked(origin, "/blobs/"+digestOf(t, first)) {
		t.Error("what the mirror does not have did not come from the registry, or more")
	}
	_, err := p.pull(t, origin.addr+"/team/app:v3")
	wantError(t, err, ErrNotFound, "in "+origin.addr)
	// A mirror that lacks a layer is helped out.
	m.push(t, "cache/team/app:v2", there)
	p.Cache = newPuller(t).Cache
	mirror.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, digestOf(t, second)) {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	})
	wantLayers(t, p.mustPull(t, origin.addr+"/team/app:v2"), []v1.Layer{first, second}...)
	p.Registries.Rules[0].Blocked = true
	_, err = p.pull(t, origin.addr+"/team/app:v1")
	wantError(t, err, ErrAccess, "blocked on this host")
}
