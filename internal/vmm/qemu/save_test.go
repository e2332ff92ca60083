package qemu

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/qcow2"
	"github.com/smolvm/smolvm/internal/vmm"
)

// diskConfig is a machine with a disk of a MiB.
func diskConfig(t testing.TB) vmm.Config {
	t.Helper()
	config := testConfig(t)
	config.Disk = filepath.Join(config.Dir, "disk")
	base := filepath.Join(config.Dir, "base")
	if err := os.WriteFile(base, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay(t, config.Disk, base, qcow2.Raw)
	return config
}

func overlay(t testing.TB, path, backing, format string) {
	t.Helper()
	if err := (qcow2.Overlay{Size: 1 << 20, Backing: backing, Format: format}).Create(path); err != nil {
		t.Fatal(err)
	}
}

// goOn starts a machine of config that goes on from where another one was saved.
func goOn(t testing.TB, config vmm.Config, from vmm.Destination, restored func() error) (*machine, *remote) {
	t.Helper()
	config.Dir = t.TempDir()
	config.From = &vmm.Saved{Console: []byte("said before\n"), Restored: restored}
	for path, to := range map[string]**os.File{from.Memory: &config.From.Memory, from.State: &config.From.State} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		*to = f
	}
	return bootMachine(t, config)
}

func expect(t testing.TB, r *remote, want string, order ...string) {
	t.Helper()
	if answer, err := r.do(order...); err != nil || answer != want {
		t.Errorf("%q is answered %q, %v, not %q", order, answer, err, want)
	}
}

// A guest is saved that writes to its memory as fast as it can. It and its copies go on from
// the same moment, each with a disk of its own, and all of them have what was written before.
func TestSaveRunning(t *testing.T) {
	t.Parallel()
	config := diskConfig(t)
	m, r := bootMachine(t, config)
	expect(t, r, "written", "disk", "first")
	expect(t, r, "begun", "churn")
	to := vmm.Destination{Memory: filepath.Join(config.Dir, "memory"), State: filepath.Join(config.Dir, "state")}
	own, copied := filepath.Join(config.Dir, "own"), filepath.Join(config.Dir, "copied")
	to.Stopped = func(ctx context.Context) error {
		if !m.Paused() {
			t.Error("the guest runs")
		}
		overlay(t, own, config.Disk, qcow2.Qcow2)
		overlay(t, copied, config.Disk, qcow2.Qcow2)
		return m.OverlayDisk(ctx, own)
	}
	if err := m.Save(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	if !m.Paused() {
		t.Error("the guest runs on before it is told to")
	}
	if err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(t, r, "whole", "whole")
	expect(t, r, "written", "disk", "mine!")

	config.Disk = copied
	restored := false
	second, s := goOn(t, config, to, func() error { restored = true; return nil })
	if !restored {
		t.Error("nobody was told that all is restored")
	}
	expect(t, s, "whole", "whole")
	expect(t, s, "first", "disk")
	expect(t, s, "written", "disk", "copy!")
	expect(t, r, "whole", "whole")

	// And again, from a copy, onto a disk that has changed since.
	again := vmm.Destination{Memory: filepath.Join(second.dir, "memory"), State: filepath.Join(second.dir, "state")}
	if err := second.Save(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*machine{m, second} {
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	third, s := goOn(t, config, again, nil)
	expect(t, s, "whole", "whole")
	expect(t, s, "copy!", "disk")
	if err := third.Kill(); err != nil {
		t.Fatal(err)
	}
	// What is on the disks, and not only in the guests' memory.
	config.Dir = t.TempDir()
	for path, want := range map[string]string{own: "mine!", copied: "copy!", filepath.Join(filepath.Dir(own), "disk"): "first"} {
		config.Disk = path
		m, r := bootMachine(t, config)
		expect(t, r, want, "disk")
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
	}
}

// In whatever moment saving is given up, the guest goes on.
func TestSaveGivenUp(t *testing.T) {
	t.Parallel()
	config := diskConfig(t)
	m, r := bootMachine(t, config)
	to := vmm.Destination{Memory: filepath.Join(config.Dir, "memory"), State: filepath.Join(config.Dir, "state")}
	began := time.Now()
	if err := m.Save(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	const moments = 40
	step := 2 * time.Since(began) / moments
	givenUp := 0
	for i := range moments {
		if err := errors.Join(m.Resume(t.Context()), os.RemoveAll(to.Memory), os.RemoveAll(to.State)); err != nil {
			t.Fatalf("given up after %v: %v", time.Duration(i)*step, err)
		}
		expect(t, r, "pong", "ping")
		ctx, cancel := context.WithCancel(t.Context())
		timer := time.AfterFunc(time.Duration(i)*step, cancel) // any moment will do
		err := m.Save(ctx, to)
		timer.Stop()
		cancel()
		switch {
		case errors.Is(err, context.Canceled):
			givenUp++
		case err != nil:
			t.Errorf("given up after %v: %v", time.Duration(i)*step, err)
		}
	}
	if givenUp == 0 || givenUp == moments {
		t.Errorf("of %d it was given up %d times", moments, givenUp)
	}
	if err := m.Kill(); err != nil {
		t.Error(err)
	}
}

// What cannot be saved leaves nothing, and a guest that goes on.
func TestSaveFails(t *testing.T) {
	t.Parallel()
	config := diskConfig(t)
	m, r := bootMachine(t, config)
	to := vmm.Destination{Memory: filepath.Join(config.Dir, "memory"), State: filepath.Join(config.Dir, "state")}
	gone := func(what string) {
		t.Helper()
		for _, path := range []string{to.Memory, to.State} {
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s is left: %v", what, path, err)
			}
		}
		if err := m.Resume(t.Context()); err != nil {
			t.Errorf("%s: resume: %v", what, err)
		}
		expect(t, r, "pong", "ping")
	}
	boom := errors.New("boom")
	failing := to
	failing.Stopped = func(context.Context) error { return boom }
	if err := m.Save(t.Context(), failing); !errors.Is(err, boom) {
		t.Error("a failure while it is stopped:", err)
	}
	gone("failure")
	ctx, cancel := context.WithCancel(t.Context())
	failing.Stopped = func(context.Context) error { cancel(); return nil }
	if err := m.Save(ctx, failing); !errors.Is(err, context.Canceled) {
		t.Error("cancelled:", err)
	}
	gone("cancelled")
	unwritable := to
	unwritable.State = filepath.Join(config.Dir, "no", "state")
	if err := m.Save(t.Context(), unwritable); !errors.Is(err, fs.ErrNotExist) {
		t.Error("no directory:", err)
	}
	gone("no directory")
	if err := m.OverlayDisk(t.Context(), filepath.Join(config.Dir, "none")); err == nil {
		t.Error("a disk that is not there is taken")
	}
	if err := m.Save(t.Context(), to); err != nil {
		t.Error("in the end:", err)
	}
	// One whose restoring must not be finished never runs.
	config.From = &vmm.Saved{Restored: func() error { return boom }}
	config.Dir = t.TempDir()
	for path, file := range map[string]**os.File{to.Memory: &config.From.Memory, to.State: &config.From.State} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		*file = f
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := NewDriver(Options{Log: testLog(t)}).Start(t.Context(), config); !errors.Is(err, boom) {
		t.Error("not to be finished:", err)
	}
}
