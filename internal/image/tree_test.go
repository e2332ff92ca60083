package image

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStages(t *testing.T) {
	var got []string
	job := &Job{Log: testLog(), report: func(p Progress) { got = append(got, p.Stage) }}
	follow := (&tree{job: job}).stage()
	for _, line := range []string{
		"I: running apt-get update...", "I: downloading packages with apt...", "I: extracting archives...",
		"I: installing essential packages...", "I: downloading packages with apt...", "I: installing remaining packages inside the chroot...",
		"I: running --customize-hook in shell: sh -c 'set -eu", "I: success in 1 seconds",
	} {
		follow(line)
	}
	if diff := cmp.Diff([]string{stageDownload, stageUnpack, stageBase, stagePrograms, stageKernel}, got); diff != "" {
		t.Error(diff)
	}
}

func TestListOwners(t *testing.T) {
	archive := func(headers ...tar.Header) *bytes.Buffer {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return &b
	}
	got, err := listOwners(archive(
		tar.Header{Name: "./etc/passwd", Mode: 0o644},
		tar.Header{Name: "./etc/shadow", Mode: 0o640, Gid: 42},
		tar.Header{Name: "./var/mail/", Typeflag: tar.TypeDir, Mode: 0o2775, Gid: 8},
		tar.Header{Name: "./link", Typeflag: tar.TypeSymlink, Linkname: "x", Gid: 8},
	))
	if want := "0:42 640 etc/shadow\n0:8 2775 var/mail\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := listOwners(archive(tar.Header{Name: "../x", Gid: 1})); err == nil {
		t.Error("a name outside of the tree was accepted")
	}
}

// TestGuestFiles has links in the tree that lead out of it.
func TestGuestFiles(t *testing.T) {
	outside, inside := t.TempDir(), t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"file": victim, "dir": outside} {
		if err := os.Symlink(target, filepath.Join(inside, link)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(inside)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close() //nolint:errcheck // a test's directory
	g := guestFiles{root: root}
	g.write("file", 0o600, []byte("new"))
	g.write("a/b/c", 0o755, []byte("new"))
	if g.err != nil {
		t.Fatal(g.err)
	}
	if data, err := os.ReadFile(victim); err != nil || string(data) != "kept" {
		t.Errorf("a file outside was written: %q, %v", data, err)
	}
	if info, err := os.Lstat(filepath.Join(inside, "file")); err != nil || info.Mode() != 0o600 {
		t.Errorf("the link was not replaced: %v, %v", info, err)
	}
	if g.write("dir/victim", 0o644, nil); g.err == nil {
		t.Error("wrote through a link to a directory outside")
	}
	if data, err := os.ReadFile(victim); err != nil || string(data) != "kept" {
		t.Errorf("a file outside was written: %q, %v", data, err)
	}
}
