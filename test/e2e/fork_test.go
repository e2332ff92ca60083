package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm"
)

// pageOf serves a page in the guest that says how often it was fetched, which a program has in
// its memory.
const pageOf = `cat >/root/count.py <<'END'
import http.server
class Count(http.server.BaseHTTPRequestHandler):
    n = 0
    def do_GET(self):
        Count.n += 1
        self.send_response(200); self.end_headers(); self.wfile.write(b"%d" % Count.n)
http.server.HTTPServer(("0.0.0.0", 8000), Count).serve_forever()
END
python3 /root/count.py >/dev/null 2>&1 &`

func serveCount(t *testing.T, vm *smolvm.VM) (port int) {
	t.Helper()
	run(t, vm, pageOf)
	waitPort(t, vm, 8000)
	return expose(t, vm, 8000, 0)
}

func wantCount(t *testing.T, port, want int) {
	t.Helper()
	if got, err := get("127.0.0.1", port, "/"); err != nil || string(got) != fmt.Sprint(want) {
		t.Errorf("port %d says %q, %v, not %d", port, got, err, want)
	}
}

// wantNoLayers wants nothing to be left of copies.
func (f *fixture) wantNoLayers() {
	f.t.Helper()
	for _, pattern := range []string{"layers/*.qcow2", "snapshots/*", "snapshots/.*"} {
		if left, err := filepath.Glob(filepath.Join(f.dir, pattern)); err != nil || len(left) > 0 {
			f.t.Errorf("left are %v, %v", left, err)
		}
	}
}

// with are the fixture's options and others.
func (f *fixture) with(opts ...smolvm.Option) []smolvm.Option {
	return slices.Concat(f.opts, opts)
}

// A VM is forked while it serves. It and its copies go on from there, each for itself, and nothing
// that tells who they are is the same in two of them.
func TestFork(t *testing.T) {
	f := newFixture(t)
	vm := f.launch(smolvm.Memory(256), smolvm.Env("WHO=source"))
	port := serveCount(t, vm)
	wantCount(t, port, 1)
	run(t, vm, "echo before >/root/note")
	waits := vm.Command(t.Context(), "sleep", "1000")
	if err := waits.Start(); err != nil {
		t.Fatal(err)
	}
	copies, err := vm.Fork(t.Context(), 2, smolvm.Name("copy"), smolvm.Env("EXTRA=yes"))
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range copies {
		f.closeAtEnd(c)
		if want := fmt.Sprintf("copy-%d", i+1); c.Name() != want {
			t.Errorf("it is called %q, not %q", c.Name(), want)
		}
		wantOrigin(t, c, smolvm.FromSaved, "")
		wantClock(t, c)
		if got := run(t, c, "echo $WHO $EXTRA; cat /root/note"); got != "source yes\nbefore\n" {
			t.Errorf("in a copy: %q", got)
		}
		if forwards := c.Forwards(); len(forwards) != 0 {
			t.Errorf("a copy has exposed %v", forwards)
		}
		// What nobody waits for any more has ended.
		eventually(t, "the command whose caller is the source's has ended", func() error {
			if got := run(t, c, "pgrep -x sleep || true"); got != "" {
				return fmt.Errorf("it runs as %s", got)
			}
			return nil
		})
	}
	wantClock(t, vm)
	all := append([]*smolvm.VM{vm}, copies...)
	for what, command := range individual() {
		if what == "boot ID" || what == "environment" {
			continue // it was one boot
		}
		seen := map[string]string{}
		for _, vm := range all {
			got := run(t, vm, command)
			if other, taken := seen[got]; taken {
				t.Errorf("%s of %s and %s is %q", what, vm.Name(), other, got)
			}
			seen[got] = vm.Name()
		}
	}
	// The server of each counts on from where it was, and each disk is its own.
	ports := []int{port, expose(t, copies[0], 8000, 0), expose(t, copies[1], 8000, 0)}
	for i, port := range ports {
		for n := range i + 1 {
			wantCount(t, port, n+2)
		}
	}
	for _, vm := range all {
		run(t, vm, "echo "+vm.Name()+" >/root/note; sync; echo 3 >/proc/sys/vm/drop_caches")
	}
	for _, vm := range all {
		if got := strings.TrimSpace(run(t, vm, "cat /root/note")); got != vm.Name() {
			t.Errorf("the note of %s is %q", vm.Name(), got)
		}
	}
	if got := run(t, vm, "pgrep -x sleep"); got == "" {
		t.Error("the source's own command has ended")
	}
	// One of a copy, when the source is gone.
	if err := errors.Join(vm.Close(), copies[1].Close()); err != nil {
		t.Fatal(err)
	}
	again, err := copies[0].Fork(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := copies[0].Close(); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(run(t, again[0], "cat /root/note")); got != "copy-1" {
		t.Errorf("the note of a copy's copy is %q", got)
	}
	if err := again[0].Close(); err != nil {
		t.Fatal(err)
	}
	f.wantNoLayers()
}

// A VM that does not run, or is paused, can be forked too. What cannot be leaves nothing.
func TestForkHeld(t *testing.T) {
	f := newFixture(t)
	vm := f.launch(smolvm.Memory(256))
	run(t, vm, "echo before >/root/note")
	if err := vm.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	fork := func(want smolvm.Origin) {
		t.Helper()
		copies, err := vm.Fork(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		wantOrigin(t, copies[0], want, "")
		if got := strings.TrimSpace(run(t, copies[0], "cat /root/note")); got != "before" {
			t.Errorf("the note is %q", got)
		}
		if err := copies[0].Close(); err != nil {
			t.Error(err)
		}
	}
	fork(smolvm.FromSaved)
	if status, err := vm.Status(t.Context()); err != nil || status != smolvm.StatusPaused {
		t.Errorf("it is %s, %v", status, err)
	}
	if err := vm.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, vm, "true")
	taken := f.launch(smolvm.Memory(256), smolvm.Name("taken-2"))
	if _, err := vm.Fork(t.Context(), 3, smolvm.Name("taken")); !errors.Is(err, smolvm.ErrExists) {
		t.Errorf("by a name that is taken: %v", err)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Fork(t.Context(), 0); !errors.Is(err, smolvm.ErrInvalidOption) {
		t.Errorf("into none: %v", err)
	}
	if vms, err := smolvm.List(t.Context(), f.opts...); err != nil || len(vms) != 1 {
		t.Errorf("there are %v, %v", vms, err)
	}
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	fork(smolvm.FromBoot)
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(run(t, vm, "cat /root/note")); got != "before" {
		t.Errorf("the note is %q", got)
	}
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	f.wantNoLayers()
}

// The owner of a VM is killed at moments throughout a fork. Nothing is left of the copy, and
// nothing is lost of the VM.
func TestOwnerKilledWhileForking(t *testing.T) {
	f := newFixture(t)
	f.createBackground("web")
	vm, err := smolvm.Open(t.Context(), "web", f.background()...)
	if err != nil {
		t.Fatal(err)
	}
	f.closeAtEnd(vm)
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, vm, "echo before >/root/note; sync")
	for i, moment := range []time.Duration{0, 10, 20, 40, 80, 120, 160, 240, 320} {
		info, err := vm.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		forked := make(chan error, 1)
		go func() {
			copies, err := vm.Fork(t.Context(), 1)
			for _, c := range copies {
				err = errors.Join(err, c.Delete(t.Context()))
			}
			forked <- err
		}()
		time.Sleep(moment * time.Millisecond) // any moment will do
		kill(t, info.Owner.PID)
		if err := <-forked; err != nil {
			t.Logf("after %d ms: %v", moment, err)
		}
		if got := run(t, vm, fmt.Sprintf("cat /root/note; echo %d >>/root/note; sync", i)); !strings.HasPrefix(got, "before\n") || strings.Count(got, "\n") != i+1 {
			t.Fatalf("after a kill at %d ms the note is %q", moment, got)
		}
	}
	// What the disk has is what the guest had.
	if err := errors.Join(vm.Stop(t.Context()), vm.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	if got := run(t, vm, "cat /root/note"); got != "before\n0\n1\n2\n3\n4\n5\n6\n7\n8\n" {
		t.Errorf("after a boot the note is %q", got)
	}
	if err := vm.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if vms, err := smolvm.List(t.Context(), f.opts...); err != nil || len(vms) != 0 {
		t.Errorf("left are %v, %v", vms, err)
	}
	f.wantNoLayers()
}

// A fork needs space for the memory, and says so before it begins.
func TestForkWithoutSpace(t *testing.T) {
	f := newFixture(t)
	vm := f.launch(smolvm.Memory(256))
	dir := filepath.Join(f.dir, "snapshots")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if _, err := vm.Fork(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "too little space") {
		t.Errorf("it says %v", err)
	}
	run(t, vm, "true")
}

// Who gives up a copy, at whatever moment, leaves nothing of it, and a VM that goes on.
func TestCopyGivenUp(t *testing.T) {
	f := newFixture(t)
	vm := f.launchBackground("web", smolvm.Memory(256))
	f.closeAtEnd(vm)
	copies := map[string]func(context.Context) error{
		"fork": func(ctx context.Context) error {
			made, err := vm.Fork(ctx, 1)
			for _, c := range made {
				err = errors.Join(err, c.Delete(t.Context()))
			}
			return err
		},
		"snapshot": func(ctx context.Context) error {
			s, err := vm.Snapshot(ctx, "")
			if err == nil {
				err = smolvm.RemoveSnapshot(t.Context(), s.Name, f.opts...)
			}
			return err
		},
		"suspend": func(ctx context.Context) error {
			err := vm.Suspend(ctx)
			if err == nil {
				err = vm.Start(t.Context())
			}
			return err
		},
	}
	for what, begin := range copies {
		for _, moment := range []time.Duration{0, 20, 60, 120, 200} {
			ctx, cancel := context.WithCancel(t.Context())
			timer := time.AfterFunc(moment*time.Millisecond, cancel) // any moment will do
			if err := begin(ctx); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("%s given up after %d ms: %v", what, moment, err)
			}
			timer.Stop()
			cancel()
			if status, err := vm.Status(t.Context()); err != nil || status != smolvm.StatusRunning {
				t.Fatalf("%s given up after %d ms: the VM is %s, %v", what, moment, status, err)
			}
			run(t, vm, "true")
		}
	}
	if vms, err := smolvm.List(t.Context(), f.opts...); err != nil || len(vms) != 1 {
		t.Errorf("there are %v, %v", vms, err)
	}
	if err := vm.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.wantNoLayers()
}
