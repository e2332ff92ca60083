package oci

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/smolvm/smolvm/internal/oci/blob"
	"golang.org/x/sys/unix"
)

const big = 4 << 20

// wantBytes checks how much of a layer went through the front, and that it was asked for in parts.
func wantBytes(t *testing.T, f *front, l v1.Layer, path string, requests int) {
	t.Helper()
	asked, sent := f.seen(path)
	// What was sent when the connection broke need not all have come.
	if size := sizeOf(t, l); sent < size || sent > size+size/4 {
		t.Errorf("%d bytes were sent of a layer of %d", sent, size)
	}
	if len(asked) != requests {
		t.Errorf("it was asked for %d times", len(asked))
	}
	for i, r := range asked {
		if resumed := strings.HasPrefix(r.Header.Get("Range"), "bytes="); resumed != (i > 0) {
			t.Errorf("request %d is for %q", i, r.Header.Get("Range"))
		}
	}
}

// TestRegistryDies kills the registry in the middle of a layer, and starts it again.
func TestRegistryDies(t *testing.T) {
	s := startServer(t, "")
	l := layer(t, 1, big)
	s.push(t, "app:v1", imageOf(t, "linux/amd64", l))
	f := newFront(t, s.Addr)
	path := "/v2/app/blobs/" + digestOf(t, l)
	f.cutOnce(path, big/2, func() {
		if err := errors.Join(s.Kill(), s.Start("")); err != nil {
			t.Error(err)
		}
	})
	p := newPuller(t)
	wantLayers(t, p.mustPull(t, f.addr+"/app:v1"), l)
	wantBytes(t, f, l, path, 2)
	wantNoPartials(t, p.Cache)
	if !strings.Contains(p.log.String(), "download broke off") {
		t.Errorf("log: %s", p.log)
	}
}

// TestBreaksOften: as long as something comes each time, it goes on.
func TestBreaksOften(t *testing.T) {
	s := startServer(t, "")
	l := layer(t, 1, 1<<20)
	s.push(t, "app:v1", imageOf(t, "linux/amd64", l))
	f := newFront(t, s.Addr)
	path := "/v2/app/blobs/" + digestOf(t, l)
	f.cutAlways(path, 150_000, nil)
	p := newPuller(t)
	p.Patience.Attempts = 2
	wantLayers(t, p.mustPull(t, f.addr+"/app:v1"), l)
	wantBytes(t, f, l, path, 7)
}

// TestBreaksAlways: if nothing comes any more, it ends.
func TestBreaksAlways(t *testing.T) {
	s := startServer(t, "")
	l := layer(t, 1, 1<<20)
	s.push(t, "app:v1", imageOf(t, "linux/amd64", l))
	f := newFront(t, s.Addr)
	path := "/v2/app/blobs/" + digestOf(t, l)
	f.cutAlways(path, 0, nil)
	p := newPuller(t)
	_, err := p.pull(t, f.addr+"/app:v1")
	wantError(t, err, errBroken, "layer "+digestOf(t, l))
	if asked, _ := f.seen(path); len(asked) != p.Patience.Attempts {
		t.Errorf("it was asked for %d times", len(asked))
	}
}

// TestNoRanges: a registry that sends all again is believed, and one that sends something else is not.
func TestNoRanges(t *testing.T) {
	s := startServer(t, "")
	l := layer(t, 1, 1<<20)
	s.push(t, "app:v1", imageOf(t, "linux/amd64", l))
	path := "/v2/app/blobs/" + digestOf(t, l)
	for name, answer := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"whole": func(_ http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			return false
		},
		"other part": func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") != "" {
				r.Header.Set("Range", "bytes=5-")
			}
			return false
		},
		"not satisfiable": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return true
			}
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t, s.Addr)
			f.answer(answer)
			f.cutOnce(path, 500_000, func() {})
			wantLayers(t, newPuller(t).mustPull(t, f.addr+"/app:v1"), l)
		})
	}
}

// TestWrongPiece: what an earlier process left may be damaged; then it is fetched in one piece.
func TestWrongPiece(t *testing.T) {
	s := startServer(t, "")
	l := layer(t, 1, 1<<20)
	s.push(t, "app:v1", imageOf(t, "linux/amd64", l))
	p := newPuller(t)
	w, err := p.Cache.Begin(t.Context(), blob.Digest(digestOf(t, l)), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(make([]byte, 5000))
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	wantLayers(t, p.mustPull(t, s.Addr+"/app:v1"), l)
	if !strings.Contains(p.log.String(), "fetch it anew") {
		t.Errorf("log: %s", p.log)
	}
}

// TestKilledProcess: what a killed process has fetched is not fetched again by the next.
func TestKilledProcess(t *testing.T) {
	s := startServer(t, "")
	l := layer(t, 1, big)
	s.push(t, "app:v1", imageOf(t, "linux/amd64", l))
	f := newFront(t, s.Addr)
	path := "/v2/app/blobs/" + digestOf(t, l)
	reached, killed := make(chan struct{}), make(chan struct{})
	f.cutOnce(path, big/2, func() {
		close(reached)
		<-killed
	})
	p := newPuller(t)
	process := startPull(t, f.addr+"/app:v1", p.Cache.Dir())
	<-reached
	partial := filepath.Join(p.Cache.Dir(), "partial", strings.Replace(digestOf(t, l), ":", "-", 1))
	waitFor(t, func() bool {
		info, err := os.Stat(partial)
		return err == nil && info.Size() >= big/2
	})
	if err := process.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = process.Wait()
	close(killed)
	wantLayers(t, p.mustPull(t, f.addr+"/app:v1"), l)
	wantBytes(t, f, l, path, 2)
	if _, sent := f.seen(path); sent != sizeOf(t, l) {
		t.Errorf("%d bytes were sent", sent)
	}
	wantNoPartials(t, p.Cache)
}

func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("timeout")
		}
	}
}

// TestProcessesAtOnce: of several processes that pull the same, one fetches each part.
func TestProcessesAtOnce(t *testing.T) {
	s := startServer(t, "")
	layers := []v1.Layer{layer(t, 1, 1<<20), layer(t, 2, 1<<20), layer(t, 3, 1<<20), layer(t, 4, 1<<20)}
	image := imageOf(t, "linux/amd64", layers...)
	s.push(t, "app:v1", image)
	f := newFront(t, s.Addr)
	// Nobody gets a layer before all are there.
	var here sync.WaitGroup
	const processes = 3
	here.Add(processes)
	f.answer(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			here.Done()
			here.Wait()
		}
		return false
	})
	p := newPuller(t)
	var wait []func() error
	for range processes {
		wait = append(wait, startPull(t, f.addr+"/app:v1", p.Cache.Dir()).Wait)
	}
	for _, w := range wait {
		if err := w(); err != nil {
			t.Error(err)
		}
	}
	wantLayers(t, p.mustPull(t, s.Addr+"/app:v1"), layers...)
	for _, l := range layers {
		if asked, sent := f.seen("/v2/app/blobs/" + digestOf(t, l)); len(asked) != 1 || sent != sizeOf(t, l) {
			t.Errorf("a layer was fetched %d times, %d bytes", len(asked), sent)
		}
	}
	wantNoPartials(t, p.Cache)
}

// TestNoSpace: what came before the disk was full is not fetched again when it no longer is.
func TestNoSpace(t *testing.T) {
	s := startServer(t, "")
	small, large := layer(t, 1, 10_000), layer(t, 2, big)
	s.push(t, "app:v1", imageOf(t, "linux/amd64", small, large))
	f := newFront(t, s.Addr)
	p := newPuller(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	var err error
	if p.Cache, err = blob.Open(dir); err != nil {
		t.Fatal(err)
	}
	// The small one is there already: side by side, it could be the one that the disk has no space for.
	s.push(t, "small:v1", imageOf(t, "linux/amd64", small))
	wantLayers(t, p.mustPull(t, f.addr+"/small:v1"), small)
	_, err = p.pull(t, f.addr+"/app:v1")
	wantError(t, err, syscall.ENOSPC, "no space left for "+digestOf(t, large), dir, fmt.Sprint(sizeOf(t, large)))
	u, err := p.Cache.Usage()
	if err != nil || u.Partial < 1<<20 {
		t.Errorf("of what came is kept %+v, %v", u, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	f.forget()
	wantLayers(t, p.mustPull(t, f.addr+"/app:v1"), small, large)
	if _, sent := f.seen("/v2/app/blobs/" + digestOf(t, large)); sent != sizeOf(t, large)-u.Partial {
		t.Errorf("%d bytes were fetched when %d of %d were there", sent, u.Partial, sizeOf(t, large))
	}
}

// TestCalledOff: a pull ends with its context, and what came is kept.
func TestCalledOff(t *testing.T) {
	s := startServer(t, "")
	l := layer(t, 1, big)
	s.push(t, "app:v1", imageOf(t, "linux/amd64", l))
	f := newFront(t, s.Addr)
	released := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	p := newPuller(t)
	f.cutOnce("/v2/app/blobs/"+digestOf(t, l), big/2, func() {
		// What went through need not have come yet.
		for {
			u, err := p.Cache.Usage()
			if err != nil || u.Partial > 0 || t.Context().Err() != nil {
				break
			}
			runtime.Gosched()
		}
		cancel()
		<-released
	})
	defer close(released)
	if _, err := p.pullUntil(ctx, t, f.addr+"/app:v1"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if u, err := p.Cache.Usage(); err != nil || u.Partial == 0 {
		t.Errorf("of what came is kept %+v, %v", u, err)
	}
	if _, err := p.pullUntil(ctx, t, f.addr+"/app:v1"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
