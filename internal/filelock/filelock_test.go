package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func take(t *testing.T, path string) *Lock {
	t.Helper()
	l, err := Take(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closeLock(t *testing.T, l *Lock) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// waiters waits until so many wait for a lock that is held.
func waiters(t *testing.T, path string, want int) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	file := fmt.Sprintf(":%d ", info.Sys().(*syscall.Stat_t).Ino)
	for n := -1; n != want; runtime.Gosched() {
		locks, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		n = 0
		for line := range strings.Lines(string(locks)) {
			if strings.Contains(line, "->") && strings.Contains(line, file) {
				n++
			}
		}
	}
}

// TestOneAtATime has many want the lock again and again.
func TestOneAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	const takers, turns = 8, 50
	var holders atomic.Int32
	done := make(chan error)
	for range takers {
		go func() {
			for range turns {
				l, err := Take(t.Context(), path)
				if err != nil {
					done <- err
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d hold it", n)
				}
				runtime.Gosched()
				holders.Add(-1)
				if err := l.Close(); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range takers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestTurns: who came first is served first.
func TestTurns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l := take(t, path)
	const n = 10
	turns := make(chan int, n)
	errs := make(chan error, n)
	for i := range n {
		go func() {
			l, err := Take(t.Context(), path)
			if err == nil {
				turns <- i
				err = l.Close()
			}
			errs <- err
		}()
		waiters(t, path, i+1)
	}
	closeLock(t, l)
	for i := range n {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
		if got := <-turns; got != i {
			t.Errorf("turn %d was that of %d", i, got)
		}
	}
}

// TestWaitCalledOff: who stops waiting does so at once, and keeps nobody else from the lock.
func TestWaitCalledOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l := take(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, err := Take(ctx, path)
		result <- err
	}()
	waiters(t, path, 1)
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("the wait ended with %v", err)
	}
	if _, err := Take(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody was to wait any more, got %v", err)
	}
	closeLock(t, l)
	closeLock(t, take(t, path))
}

func TestCurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l := take(t, path)
	defer closeLock(t, l)
	current := func(want bool) {
		t.Helper()
		if got, err := l.Current(); err != nil || got != want {
			t.Errorf("it is current: %v, %v", got, err)
		}
	}
	current(true)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	current(false)
	next := take(t, path)
	defer closeLock(t, next)
	current(false)
}

// TestShared: many share a lock, and nobody has it alone meanwhile.
func TestShared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	share := func() *Lock {
		l, err := TakeShared(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	first, second := share(), share()
	if _, err := Try(path); !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), path) {
		t.Errorf("it is shared, and Try says %v", err)
	}
	closeLock(t, first)
	if _, err := Try(path); !errors.Is(err, ErrHeld) {
		t.Errorf("one has it still, and Try says %v", err)
	}
	closeLock(t, second)
	alone, err := Try(path)
	if err != nil {
		t.Fatal(err)
	}
	shared := make(chan *Lock)
	go func() {
		l, err := TakeShared(t.Context(), path)
		if err != nil {
			t.Error(err)
		}
		shared <- l
	}()
	waiters(t, path, 1)
	closeLock(t, alone)
	if l := <-shared; l != nil {
		closeLock(t, l)
	}
}

func TestNoDirectory(t *testing.T) {
	if _, err := Take(t.Context(), filepath.Join(t.TempDir(), "none", "lock")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
