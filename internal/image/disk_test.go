package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smolvm/smolvm/internal/image/ext4"
	"github.com/smolvm/smolvm/internal/image/partition"
	"github.com/smolvm/smolvm/internal/qcow2"
)

// feed runs a program of the host with something at its input.
func feed(t *testing.T, input, name string, args ...string) {
	t.Helper()
	path, err := findTool(name)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

const (
	oldContents = "what was there"
	newContents = "what was on its way"
)

// newDisk makes a filesystem with a file in it, and returns its path.
func newDisk(t *testing.T) string {
	t.Helper()
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "disk, of mine")
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte(oldContents), 0o600); err != nil {
		t.Fatal(err)
	}
	program(t, "mke2fs", "-q", "-F", "-t", "ext4", "-d", dir, path, "16M")
	return path
}

// interrupt makes a filesystem one that was not unmounted, with a change to its file in the journal.
func interrupt(t *testing.T, path string) {
	t.Helper()
	block := strings.TrimSpace(program(t, "debugfs", "-R", "blocks /file", path))
	change := filepath.Join(t.TempDir(), "block")
	if err := os.WriteFile(change, append([]byte(newContents), make([]byte, 4096)...)[:1024], 0o600); err != nil {
		t.Fatal(err)
	}
	feed(t, "jo\njw -b "+block+" "+change+"\njc\n", "debugfs", "-w", "-f", "-", path)
}

// partitioned puts filesystems into the partitions of a disk of 64 MiB.
func partitioned(t *testing.T, label string, filesystems ...string) string {
	t.Helper()
	const mib = 1 << 20
	path, script := filepath.Join(t.TempDir(), "disk"), "label: "+label+"\n"
	disk := make([]byte, 64*mib)
	for i, file := range filesystems {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		begin := (1 + 20*i) * mib
		copy(disk[begin:], data)
		script += "start=" + []string{"1", "21", "41"}[i] + "MiB, size=20MiB\n"
	}
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	feed(t, script, "sfdisk", "-q", path)
	return path
}

func TestDisk(t *testing.T) {
	s := baseStore(t, true)
	whole, interrupted := newDisk(t), newDisk(t)
	interrupt(t, interrupted)
	other := filepath.Join(t.TempDir(), "none")
	if err := os.WriteFile(other, bytes.Repeat([]byte("none "), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	qcow2Of := func(raw string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "disk, of ? mine.qcow2")
		program(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, path)
		return path
	}
	for name, c := range map[string]struct{ path, want string }{
		"filesystem":            {whole, oldContents},
		"not unmounted":         {interrupted, newContents},
		"with partitions":       {partitioned(t, "gpt", other, whole), oldContents},
		"with old partitions":   {partitioned(t, "dos", whole, other), oldContents},
		"partition not clean":   {partitioned(t, "gpt", other, interrupted), newContents},
		"qcow2":                 {qcow2Of(whole), oldContents},
		"qcow2 with partitions": {qcow2Of(partitioned(t, "gpt", interrupted)), newContents},
	} {
		t.Run(name, func(t *testing.T) {
			before, err := os.ReadFile(c.path)
			if err != nil {
				t.Fatal(err)
			}
			img, err := s.Build(t.Context(), "mine", BuildOptions{From: "disk:" + c.path}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimRight(contentsOf(t, img, "/file"), "\x00"); got != c.want[:min(len(c.want), len(oldContents))] {
				t.Errorf("it has %q", got)
			}
			if img.From != "disk:"+c.path || contentsOf(t, img, "/lib/modules/1.2.3/modules.dep") != "dependencies" {
				t.Errorf("got %+v", img)
			}
			if after, err := os.ReadFile(c.path); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the disk is another one, %v", err)
			}
		})
	}
}

func TestDiskRefuses(t *testing.T) {
	s, dir := baseStore(t, true), t.TempDir()
	good := newDisk(t)
	create := func(name string, args ...string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		program(t, "qemu-img", append([]string{"create", "-q", "-f", "qcow2", path}, args...)...)
		return path
	}
	file := func(name string, data []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(data)
	clear(damaged[2048 : 1<<18]) // descriptors and inodes
	table, err := os.ReadFile(partitioned(t, "gpt", good))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path string
		want error
	}{
		"overlay":  {create("overlay", "-b", good, "-F", "raw"), qcow2.ErrOther},
		"too big":  {create("big", "1T"), errDisk},
		"empty":    {create("empty", "1G"), errDisk},
		"text":     {file("text", []byte("a text\n")), errDisk},
		"damaged":  {file("damaged", damaged), ext4.ErrDamaged},
		"cut":      {file("cut", data[:len(data)/2]), ext4.ErrDamaged},
		"no table": {file("table", table[:10<<20]), partition.ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Build(t.Context(), "bad", BuildOptions{From: "disk:" + c.path}, nil)
			if !errors.Is(err, c.want) || !errors.Is(err, ErrOrigin) {
				t.Errorf("got %v", err)
			}
			if _, err := os.Stat(filepath.Join(s.dir, "bad")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("something was left: %v", err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Build(ctx, "bad", BuildOptions{From: "disk:" + good}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}
