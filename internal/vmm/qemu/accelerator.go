package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/google/renameio/v2"

	"github.com/smolvm/smolvm/internal/bootid"
	"github.com/smolvm/smolvm/internal/vmm"
)

const (
	// probeWord on the kernel's command line has the guest program end at once.
	probeWord = "smolvm.probe"
	// probeLine is what the guest program says when it runs.
	probeLine = "smolvm-guest: user space"

	probeMemoryMiB = 256
	verdictFile    = "kvm.json"
	verdictLock    = "kvm.lock"
	lockRetry      = 20 * time.Millisecond
)

// verdict is whether KVM works, which was found out by trying.
type verdict struct {
	Key    string `json:"key"` // of what it holds for
	Works  bool   `json:"works"`
	Reason string `json:"reason"`
}

// Accelerator tells how guests with this kernel are best executed here, and why.
//
// That /dev/kvm can be opened proves little: in a VM it may be there and QEMU
// aborts over it, or guests hang. So a guest is booted once. What came of it is kept
// until the host boots again, or QEMU or the kernel is another. Processes that ask
// at the same time wait for one of them to find out.
func (d *Driver) Accelerator(ctx context.Context, kernel, initrd string) (accelerator vmm.Accelerator, reason string, err error) {
	if _, err := find(d.opts.Binary, debianPackage); err != nil {
		return "", "", err
	}
	if reason := kvmMissing(); reason != "" {
		return vmm.TCG, reason, nil
	}
	v, err := d.verdict(ctx, kernel, initrd)
	if err != nil {
		return "", "", fmt.Errorf("find out whether KVM works: %w", err)
	}
	if v.Works {
		return vmm.KVM, v.Reason, nil
	}
	return vmm.TCG, v.Reason, nil
}

// kvmMissing tells why KVM cannot even be tried, or nothing.
func kvmMissing() string {
	if runtime.GOARCH != "amd64" {
		return "guests are x86-64 and this host is " + runtime.GOARCH
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no /dev/kvm: the processor's virtualization is switched off, or this is a VM that has none"
	case errors.Is(err, fs.ErrPermission):
		return "this user may not open /dev/kvm: add it to the group kvm"
	case err != nil:
		return "/dev/kvm does not work: " + err.Error()
	}
	_ = f.Close() // nothing was done with it
	return ""
}

func (d *Driver) verdict(ctx context.Context, kernel, initrd string) (verdict, error) {
	key, err := d.verdictKey(kernel)
	if err != nil {
		return verdict{}, err
	}
	if d.opts.CacheDir == "" {
		return d.probe(ctx, key, kernel, initrd)
	}
	path := filepath.Join(d.opts.CacheDir, verdictFile)
	if v, ok := readVerdict(path, key); ok {
		return v, nil
	}
	lock := flock.New(filepath.Join(d.opts.CacheDir, verdictLock))
	if _, err := lock.TryLockContext(ctx, lockRetry); err != nil {
		return verdict{}, fmt.Errorf("wait for another process: %w", err)
	}
	defer lock.Close() //nolint:errcheck // closing it is all there is to do
	if v, ok := readVerdict(path, key); ok {
		return v, nil
	}
	v, err := d.probe(ctx, key, kernel, initrd)
	if err != nil {
		return verdict{}, err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return verdict{}, err
	}
	if err := renameio.WriteFile(path, b, 0o600); err != nil {
		return verdict{}, fmt.Errorf("keep what was found: %w", err)
	}
	return v, nil
}

// verdictKey changes with everything that a verdict depends on.
func (d *Driver) verdictKey(kernel string) (string, error) {
	boot, err := bootid.Read()
	if err != nil {
		return "", err
	}
	binary, err := find(d.opts.Binary, debianPackage)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n", boot)
	for _, path := range []string{binary, kernel} {
		info, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%q %d %d\n", path, info.Size(), info.ModTime().UnixNano())
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// readVerdict returns what is known. Whatever is wrong with the file, trying
// again mends it.
func readVerdict(path, key string) (v verdict, ok bool) {
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &v) != nil || v.Key != key {
		return verdict{}, false
	}
	return v, true
}

// probe boots a guest under KVM. A guest that fails is a verdict; an error
// means that there is none.
func (d *Driver) probe(ctx context.Context, key, kernel, initrd string) (verdict, error) {
	began := time.Now()
	err := d.boot(ctx, kernel, initrd, vmm.KVM)
	switch {
	case ctx.Err() != nil:
		return verdict{}, ctx.Err()
	case err == nil:
		took := time.Since(began).Round(time.Millisecond)
		return verdict{Key: key, Works: true, Reason: fmt.Sprintf("a guest ran under KVM after %v", took)}, nil
	}
	var failure *probeError
	if !errors.As(err, &failure) {
		return verdict{}, err
	}
	d.opts.Log.Debug("a guest did not run under KVM", "error", err)
	return verdict{Key: key, Reason: "/dev/kvm is there but does not work: " + failure.Error()}, nil
}

// probeError says how the guest failed, in words for people.
type probeError struct{ reason string }

func (e *probeError) Error() string { return e.reason }

// boot boots a guest until it says that it is in user space.
func (d *Driver) boot(ctx context.Context, kernel, initrd string, accelerator vmm.Accelerator) (err error) {
	dir, err := os.MkdirTemp("", "smolvm-probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	deadline := time.NewTimer(d.opts.ProbeTimeout)
	defer deadline.Stop()
	seen := newLineWatcher(probeLine)
	m, err := d.start(ctx, launch{
		Config: vmm.Config{
			Dir: dir, Kernel: kernel, Initrd: initrd, MemoryMiB: probeMemoryMiB, CPUs: 1, Accelerator: accelerator,
		},
		Append: probeWord,
	}, seen)
	var refused *refusedError
	if errors.As(err, &refused) {
		return &probeError{reason: firstLine(err.Error())}
	} else if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Kill()) }()
	select {
	case <-seen.seen:
		return nil
	case <-m.Done():
	case <-deadline.C:
		last := m.console.LastLines(1)
		if last == "" {
			last = "(nothing)"
		}
		return &probeError{reason: fmt.Sprintf("a guest did not reach user space within %v; its console's last line: %s", d.opts.ProbeTimeout, last)}
	case <-ctx.Done():
		return ctx.Err()
	}
	// The line may have been its last.
	select {
	case <-seen.seen:
		return nil
	default:
	}
	if m.Err() == nil {
		return &probeError{reason: "a guest ended before it reached user space"}
	}
	return &probeError{reason: firstLine(m.Err().Error())}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// lineWatcher is a writer that tells when a text has been written to it.
type lineWatcher struct {
	seen chan struct{} // closed then
	text []byte

	mu   sync.Mutex
	rest []byte // the end of what was written, too short to have the text in it
	once sync.Once
}

func newLineWatcher(text string) *lineWatcher {
	return &lineWatcher{seen: make(chan struct{}), text: []byte(text)}
}

func (w *lineWatcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	if bytes.Contains(w.rest, w.text) {
		w.once.Do(func() { close(w.seen) })
	}
	if extra := len(w.rest) - len(w.text) + 1; extra > 0 {
		w.rest = append(w.rest[:0], w.rest[extra:]...)
	}
	return len(p), nil
}
