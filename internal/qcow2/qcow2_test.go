package qcow2_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smolvm/smolvm/internal/qcow2"
)

// run runs a program and returns what it says.
func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return out
}

func backing(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), `a, "b":c`)
	if err := os.WriteFile(path, bytes.Repeat([]byte("backing!"), 1<<16), 0o400); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCreate has QEMU's own tools judge disks of all sizes.
func TestCreate(t *testing.T) {
	base := backing(t)
	for name, size := range map[string]int64{
		"least": 512, "the backing file's": 512 << 10, "one L1 entry": 512 << 20, "two": 512<<20 + 512, "8 GiB": 8 << 30, "most": 64 << 40,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			o := qcow2.Overlay{Size: size, Backing: base, Format: qcow2.Raw}
			if err := o.Create(path); err != nil {
				t.Fatal(err)
			}
			var info struct {
				Format        string `json:"format"`
				VirtualSize   int64  `json:"virtual-size"`
				Backing       string `json:"backing-filename"`
				BackingFormat string `json:"backing-filename-format"`
			}
			if err := json.Unmarshal(run(t, "qemu-img", "info", "--output", "json", path), &info); err != nil {
				t.Fatal(err)
			}
			if info.Format != "qcow2" || info.VirtualSize != size || info.Backing != base || info.BackingFormat != "raw" {
				t.Errorf("QEMU sees %+v", info)
			}
			if out := run(t, "qemu-img", "check", path); !strings.Contains(string(out), "No errors") {
				t.Errorf("QEMU says %s", out)
			}
		})
	}
}

// TestChain writes to an overlay of an overlay: what is below does not change.
func TestChain(t *testing.T) {
	base, dir := backing(t), t.TempDir()
	lower, upper := filepath.Join(dir, "lower"), filepath.Join(dir, "upper")
	const size = 1 << 20
	if err := (qcow2.Overlay{Size: size, Backing: base, Format: qcow2.Raw}).Create(lower); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-io", "-c", "write -P 1 0 64k", lower)
	if err := (qcow2.Overlay{Size: size, Backing: lower, Format: qcow2.Qcow2}).Create(upper); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-io", "-c", "write -P 2 32k 64k", upper)
	run(t, "qemu-io", "-c", "read -P 1 0 32k", "-c", "read -P 2 32k 64k", "-c", "read -P 0 600k 100k", upper)
	run(t, "qemu-io", "-r", "-c", "read -P 1 0 64k", lower)
	for _, path := range []string{lower, upper} {
		run(t, "qemu-img", "check", path)
	}
}

func TestRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	good := qcow2.Overlay{Size: 512, Backing: backing(t), Format: qcow2.Raw}
	for name, change := range map[string]func(*qcow2.Overlay){
		"no size":        func(o *qcow2.Overlay) { o.Size = 0 },
		"a part of 512":  func(o *qcow2.Overlay) { o.Size = 513 },
		"too large":      func(o *qcow2.Overlay) { o.Size = 1 << 62 },
		"relative":       func(o *qcow2.Overlay) { o.Backing = "disk" },
		"a long path":    func(o *qcow2.Overlay) { o.Backing = "/" + strings.Repeat("x", 1023) },
		"unknown format": func(o *qcow2.Overlay) { o.Format = "vmdk" },
	} {
		o := good
		change(&o)
		if err := o.Create(path); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something is left: %v", name, err)
		}
	}
	if err := good.Create(path); err != nil {
		t.Fatal(err)
	}
	if err := good.Create(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("twice: %v", err)
	}
}

// TestCheckAlone asks QEMU's own program for disks that lead to other files.
func TestCheckAlone(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", at("alone"), "1M")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", at("old"), "1M")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", at("alone"), "-F", "qcow2", at("overlay"))
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+at("data"), at("outside"), "1M")
	if err := os.WriteFile(at("raw"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("short"), []byte("QFI\xfb"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{
		"alone": nil, "old": nil, "overlay": qcow2.ErrOther, "outside": qcow2.ErrOther, "raw": qcow2.ErrFormat, "short": qcow2.ErrFormat, "nosuch": os.ErrNotExist,
	} {
		if _, err := qcow2.CheckAlone(at(name)); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
