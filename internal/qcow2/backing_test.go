package qcow2

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestBacking(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	for _, format := range []string{Raw, Qcow2} {
		if err := (Overlay{Size: 1 << 20, Backing: "/some/where, else", Format: format}).Create(path); err != nil {
			t.Fatal(err)
		}
		if got, err := Backing(path); err != nil || got != "/some/where, else" {
			t.Errorf("it is an overlay on %q, %v", got, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Backing(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
	alone := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
	if out, err := alone.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, err := Backing(path); err != nil || got != "" {
		t.Errorf("on nothing: %q, %v", got, err)
	}
	for what, content := range map[string]string{
		"nothing":  "",
		"text":     "This is not a disk, it is a text.",
		"cut":      magic + "\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x70\x00\x00\x00\x07",
		"far away": magic + "\x00\x00\x00\x03\x70\x00\x00\x00\x00\x00\x00\x70\x00\x00\x00\x07",
		"long":     magic + "\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x70\x70\x00\x00\x07",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Backing(path); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
}

func FuzzBacking(f *testing.F) {
	head, _, err := Overlay{Size: 1 << 20, Backing: "/base", Format: Raw}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(head[:200])
	f.Fuzz(func(t *testing.T, content []byte) {
		if got, err := decodeBacking(bytes.NewReader(content)); err == nil && len(got) > maxBackingName {
			t.Errorf("a name of %d bytes", len(got))
		}
	})
}
