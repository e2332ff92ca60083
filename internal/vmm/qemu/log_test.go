package qemu

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBoundedLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := newBoundedLog(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	for i := range 97 {
		line := strings.Repeat(string(rune('a'+i%26)), i) + "\n"
		all.WriteString(line)
		if n, err := l.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	l.Close()
	older, err := os.ReadFile(path + ".1")
	if err != nil {
		t.Fatal(err)
	}
	newer, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(older) != 100 || len(newer) >= 100 || !bytes.HasSuffix(all.Bytes(), append(older, newer...)) {
		t.Errorf("%d and %d bytes are kept: %q %q", len(older), len(newer), older, newer)
	}
	if got, want := l.lastLines(1), strings.Repeat("s", 96); got != want {
		t.Errorf("the last line is %q", got)
	}
	if again, err := newBoundedLog(path, 100); err != nil {
		t.Error(err)
	} else {
		again.Close()
	}
	if info, err := os.Stat(path); err != nil || info.Size() != 0 {
		t.Error("a new log does not begin anew:", info, err)
	}
	if _, err := os.Stat(path + ".1"); !os.IsNotExist(err) {
		t.Error("the old log's older part is left:", err)
	}
}

// A full disk must not stop who writes.
func TestBoundedLogBroken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := newBoundedLog(filepath.Join(dir, "log"), 10)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if n, err := l.Write([]byte("hello you\n")); n != 10 || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := l.lastLines(2); got != "hello you\nhello you" {
		t.Errorf("%q", got)
	}
}

func TestTail(t *testing.T) {
	var l tail
	text := "one\r\ntwo\x1b[31m\nKernel panic - not syncing: no init\nlast\xff\n"
	if _, err := l.Write([]byte(strings.Repeat("x\n", tailLimit) + text)); err != nil {
		t.Fatal(err)
	}
	if len(l.text) > tailLimit {
		t.Error("keeps", len(l.text))
	}
	if got, want := l.lastLines(4), "one\ntwo[31m\nKernel panic - not syncing: no init\nlast"; got != want {
		t.Errorf("got %q", got)
	}
	if rest, ok := l.lineAfter(panicMark); rest != "no init" || !ok {
		t.Error(rest, ok)
	}
	if rest, ok := l.lineAfter("nothing such"); ok {
		t.Error(rest)
	}
	if got := new(tail).lastLines(3); got != "" {
		t.Errorf("an empty tail says %q", got)
	}
}
