package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/vmm"
)

// fakeKVM returns a program that calls QEMU with changed, a part of a shell script
// that may change or replace the argument $a, and notes each call in a file of
// its directory.
func fakeKVM(t *testing.T, changed string) (program, calls string) {
	t.Helper()
	if reason := kvmMissing(); reason != "" {
		t.Skip("KVM cannot be tried here: " + reason)
	}
	dir := t.TempDir()
	program, calls = filepath.Join(dir, "qemu"), filepath.Join(dir, "calls")
	script := `#!/bin/sh
echo >>"` + calls + `"
n=$#
while [ $n -gt 0 ]; do
	a=$1
	shift
	n=$((n-1))
	` + changed + `
	set -- "$@" "$a"
done
exec ` + defaultBinary + ` "$@"
`
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return program, calls
}

// emulateKVM makes a host where KVM works of one where it may not.
func emulateKVM(t *testing.T) string {
	khz, err := measureTSC(t.Context(), tscBaseline)
	if err != nil {
		t.Fatal(err)
	}
	emulated := commandLine(launch{Config: vmm.Config{Accelerator: vmm.TCG, CPUs: 1}, TSCKHz: khz})
	return `case "$a" in
		kvm) a=tcg;;
		host,*) a=` + emulatedCPU + `;;
		console=*) a="` + emulated + ` ${a##* }";;
	esac`
}

func countCalls(t *testing.T, calls string) int {
	t.Helper()
	b, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	return len(b)
}

func TestKVMWorks(t *testing.T) {
	kernel, initrd := guest(t)
	program, calls := fakeKVM(t, emulateKVM(t))
	opts := Options{Binary: program, CacheDir: t.TempDir(), Log: testLog(t), ProbeTimeout: time.Minute}
	var group sync.WaitGroup
	for range 3 { // as three processes would
		group.Go(func() {
			accelerator, reason, err := NewDriver(opts).Accelerator(t.Context(), kernel, initrd)
			if err != nil || accelerator != vmm.KVM || !strings.Contains(reason, "a guest ran under KVM") {
				t.Error(accelerator, reason, err)
			}
		})
	}
	group.Wait()
	if n := countCalls(t, calls); n != 1 {
		t.Errorf("a guest was booted %d times to find out", n)
	}
	// With another QEMU, it is found out again.
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(program, later, later); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if accelerator, _, err := NewDriver(opts).Accelerator(ctx, kernel, initrd); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("an old verdict is used:", accelerator, err)
	}
}

func TestKVMFails(t *testing.T) {
	kernel, initrd := guest(t)
	tests := map[string]struct {
		changed string
		timeout time.Duration
		want    string
	}{
		"QEMU aborts": {`echo 'error: failed to set MSR' >&2; kill -ABRT $$`, time.Minute, "failed to set MSR"},
		"QEMU refuses": {
			`[ "$a" != kvm ] || a=none`, time.Minute, "invalid accelerator",
		},
		"guest hangs": {
			emulateKVM(t), 100 * time.Millisecond, "did not reach user space within 100ms",
		},
		"guest panics": {
			emulateKVM(t) + `; case "$a" in console=*) a="$a rdinit=/nowhere";; esac`, time.Minute, "guest's kernel panicked: VFS",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			program, calls := fakeKVM(t, test.changed)
			d := NewDriver(Options{Binary: program, CacheDir: t.TempDir(), Log: testLog(t), ProbeTimeout: test.timeout})
			for range 2 {
				accelerator, reason, err := d.Accelerator(t.Context(), kernel, initrd)
				if err != nil || accelerator != vmm.TCG || !strings.Contains(reason, test.want) || strings.Contains(reason, "\n") {
					t.Error(accelerator, reason, err)
				}
			}
			if n := countCalls(t, calls); n != 1 {
				t.Errorf("a guest was booted %d times to find out", n)
			}
		})
	}
}

func TestAcceleratorNoQEMU(t *testing.T) {
	var missing *NotInstalledError
	_, _, err := NewDriver(Options{Binary: "qemu-system-z80"}).Accelerator(t.Context(), "", "")
	if !errors.As(err, &missing) || missing.Package != debianPackage {
		t.Error(err)
	}
}

// What is said for this host is true: with the accelerator that is chosen, a
// guest reaches user space.
func TestAccelerator(t *testing.T) {
	kernel, initrd := guest(t)
	d := NewDriver(Options{Log: testLog(t), ProbeTimeout: 30 * time.Second})
	accelerator, reason, err := d.Accelerator(t.Context(), kernel, initrd)
	if err != nil || reason == "" {
		t.Fatal(reason, err)
	}
	t.Log(accelerator, reason)
	if err := d.boot(t.Context(), kernel, initrd, accelerator); err != nil {
		t.Error(err)
	}
	if accelerator == vmm.KVM {
		return
	}
	config := testConfig(t)
	config.Accelerator = vmm.KVM
	if m, err := d.Start(t.Context(), config); err == nil {
		// It hangs, then.
		if err := m.Kill(); err != nil {
			t.Error(err)
		}
	} else if !errors.Is(err, vmm.ErrAccelerator) {
		t.Error("forced KVM:", err)
	}
}

func TestLineWatcher(t *testing.T) {
	text := "xx" + probeLine + "yy"
	for cut := range text {
		for size := 1; size < 5; size++ {
			w := newLineWatcher(probeLine)
			for rest := text[:cut]; rest != ""; rest = rest[min(size, len(rest)):] {
				if _, err := w.Write([]byte(rest[:min(size, len(rest))])); err != nil {
					t.Fatal(err)
				}
			}
			seen := false
			select {
			case <-w.seen:
				seen = true
			default:
			}
			if want := cut >= len("xx"+probeLine); seen != want {
				t.Errorf("%q in pieces of %d: %v", text[:cut], size, seen)
			}
		}
	}
}
