package qcow2

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What QEMU would read besides the file, it is not asked to.
func TestLeadsElsewhere(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, bytes.Repeat([]byte("secret! "), 1<<17), 0o600); err != nil {
		t.Fatal(err)
	}
	create := func(name string, args ...string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		args = append([]string{"create", "-q", "-f", "qcow2"}, append(args, path, "1M")...)
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
		return path
	}
	for _, alone := range []string{create("new"), create("old", "-o", "compat=0.10"), create("zstd", "-o", "compression_type=zstd")} {
		if size, err := CheckAlone(alone); err != nil || size != 1<<20 {
			t.Errorf("%s has %d bytes, %v", alone, size, err)
		}
	}
	for _, path := range []string{create("overlay", "-b", secret, "-F", "raw"), create("outside", "-o", "data_file="+filepath.Join(dir, "data")+",data_file_raw=on")} {
		// Without the check all that is in the other file would be read.
		if filepath.Base(path) == "outside" {
			if err := os.Rename(secret, filepath.Join(dir, "data")); err != nil {
				t.Fatal(err)
			}
		}
		raw := filepath.Join(dir, "raw")
		if out, err := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
		if got, err := os.ReadFile(raw); err != nil || !bytes.HasPrefix(got, []byte("secret!")) {
			t.Fatalf("%s has %.20q, %v, so this shows nothing", path, got, err)
		}
		if _, err := CheckAlone(path); !errors.Is(err, ErrOther) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for name, data := range map[string]string{"empty": "", "text": "text", "cut": magic + "\x00\x00\x00\x03", "version": magic + "\x00\x00\x00\x09" + string(make([]byte, 100))} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := CheckAlone(path); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzCheckAlone(f *testing.F) {
	head, _, err := Overlay{Size: 1 << 20, Backing: "/base", Format: Raw}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(head[:200])
	f.Fuzz(func(t *testing.T, content []byte) {
		if size, err := checkAlone(bytes.NewReader(content)); err == nil && size < 0 {
			t.Errorf("it has %d bytes", size)
		}
	})
}
