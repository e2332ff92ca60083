package cpio

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type file struct {
	Name, Contents string
	Mode           uint64
}

// read is an independent reader of the format, as strict as the kernel's.
func read(t *testing.T, archive []byte) []file {
	t.Helper()
	var files []file
	for at := 0; ; {
		if at+110 > len(archive) {
			t.Fatalf("archive ends without a trailer at %d", at)
		}
		header := archive[at : at+110]
		if string(header[:6]) != "070701" {
			t.Fatalf("magic %q at %d", header[:6], at)
		}
		field := func(i int) int {
			n, err := strconv.ParseUint(string(header[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		size, nameSize := field(6), field(11)
		name := string(archive[at+110 : at+110+nameSize-1])
		at = (at + 110 + nameSize + 3) &^ 3
		if name == "TRAILER!!!" {
			if at != len(archive) {
				t.Fatalf("%d bytes behind the trailer", len(archive)-at)
			}
			return files
		}
		files = append(files, file{Name: name, Mode: uint64(field(1)), Contents: string(archive[at : at+size])})
		at = (at + size + 3) &^ 3
	}
}

func TestWriter(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, err := range []error{
		w.Directory("modules", 0o755),
		w.File("/init", 0o755, []byte("12345")),
		w.File("modules/a", 0o644, nil),
		w.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []file{
		{Name: "modules", Mode: 0o40755},
		{Name: "init", Mode: 0o100755, Contents: "12345"},
		{Name: "modules/a", Mode: 0o100644},
	}
	if diff := cmp.Diff(want, read(t, b.Bytes())); diff != "" {
		t.Error(diff)
	}
	if err := w.File("late", 0o644, nil); err == nil {
		t.Error("a file was added to a closed archive")
	}
}

// TestGolden holds the bytes of one archive, which the program cpio was seen to read.
func TestGolden(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	if err := errors.Join(w.File("a", 0o644, []byte("x")), w.Close()); err != nil {
		t.Fatal(err)
	}
	want := "070701" + "00000001" + "000081A4" + strings.Repeat("0", 16) + "00000001" + strings.Repeat("0", 8) + "00000001" +
		strings.Repeat("0", 32) + "00000002" + strings.Repeat("0", 8) + "a\x00" + "x\x00\x00\x00" +
		"070701" + strings.Repeat("0", 32) + "00000001" + strings.Repeat("0", 48) + "0000000B" + strings.Repeat("0", 8) + "TRAILER!!!\x00\x00\x00\x00"
	if got := b.String(); got != want {
		t.Errorf("got\n%swant\n%s", hex.Dump([]byte(got)), hex.Dump([]byte(want)))
	}
}

func TestWriterRefuses(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, name := range []string{"", "/", ".", "..", "../x", "a/../../x", "a//b", "a/", "TRAILER!!!", "a\x00b", strings.Repeat("x", maxName+1)} {
		if err := w.File(name, 0o644, nil); err == nil {
			t.Errorf("File(%q) was accepted", name)
		}
	}
	if err := w.File("good", 0o644, nil); err != nil {
		t.Errorf("after refused names: %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestWriterKeepsError(t *testing.T) {
	w := NewWriter(failing{})
	for _, err := range []error{w.File("a", 0o644, nil), w.Directory("b", 0o755), w.Close()} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("got %v, want the writer's error", err)
		}
	}
}

// TestProgram has the archive read by another implementation, where there is one.
func TestProgram(t *testing.T) {
	program := ""
	for _, name := range []string{"cpio", "bsdtar"} {
		if path, err := exec.LookPath(name); err == nil {
			program = path
			break
		}
	}
	if program == "" {
		t.Skip("neither cpio nor bsdtar is installed; TestGolden holds the format")
	}
	path := filepath.Join(t.TempDir(), "a.cpio")
	var b bytes.Buffer
	w := NewWriter(&b)
	if err := errors.Join(w.Directory("d", 0o755), w.File("d/a", 0o644, []byte("xyz")), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"-t", "-F", path}
	if filepath.Base(program) == "bsdtar" {
		args = []string{"-t", "-f", path}
	}
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "d/a") {
		t.Errorf("%s: %v: %s", program, err, out)
	}
}

func FuzzWriter(f *testing.F) {
	f.Add("init", []byte("contents"))
	f.Fuzz(func(t *testing.T, name string, contents []byte) {
		var b bytes.Buffer
		w := NewWriter(&b)
		added := w.File(name, 0o644, contents) == nil
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		files := read(t, b.Bytes())
		if added != (len(files) == 1) {
			t.Fatalf("added %v, but %d files are in the archive", added, len(files))
		}
		if added && (files[0].Name != strings.TrimPrefix(name, "/") || files[0].Contents != string(contents)) {
			t.Fatalf("wrote %q, read %q", name, files[0].Name)
		}
	})
}
