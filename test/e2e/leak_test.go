package e2e

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/smolvm/smolvm"
)

// TestNoLeaks wants a program that has started and closed VMs to hold no more
// descriptors and goroutines than before.
func TestNoLeaks(t *testing.T) {
	f := newFixture(t)
	life := func() {
		vm := f.launch()
		serve(t, vm, 8000, "page")
		for _, transport := range []smolvm.TransportKind{smolvm.NFTables, smolvm.SSHTunnel} {
			port := expose(t, vm, 8000, 0, smolvm.HostPort(freePort(t)), smolvm.Transport(transport))
			wantPage(t, port, "page")
		}
		if err := vm.Close(); err != nil {
			t.Fatal(err)
		}
	}
	life() // what the runtime and the libraries open once, they open now
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	life()
	eventually(t, "no descriptor and no goroutine is left", func() error {
		for kind, n := range openFiles(t) {
			if n > files[kind] {
				return fmt.Errorf("%d times %s, before: %d", n, kind, files[kind])
			}
		}
		if now := runtime.NumGoroutine(); now > goroutines {
			stacks := make([]byte, 1<<20)
			return fmt.Errorf("%d goroutines, before: %d\n%s", now, goroutines, stacks[:runtime.Stack(stacks, true)])
		}
		return nil
	})
}

// openFiles counts the files that this process has open, by what they are.
func openFiles(t *testing.T) map[string]int {
	t.Helper()
	runtime.GC() // the standard library keeps pipes for splicing until then
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	kinds := make(map[string]int)
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // the directory's own descriptor
		}
		for _, anonymous := range []string{"socket", "pipe"} {
			if strings.HasPrefix(target, anonymous+":") {
				target = anonymous
			}
		}
		kinds[target]++
	}
	return kinds
}
