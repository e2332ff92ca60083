package logfile

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := New(path, 100)
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
	if got, want := l.LastLines(1), strings.Repeat("s", 96); got != want {
		t.Errorf("the last line is %q", got)
	}
	continued, err := Continue(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := continued.LastLines(1), strings.Repeat("s", 96); got != want {
		t.Errorf("the continued log's last line is %q", got)
	}
	for range 5 {
		if _, err := continued.Write([]byte("and another twenty b")); err != nil {
			t.Fatal(err)
		}
	}
	continued.Close()
	all.Write(bytes.Repeat([]byte("and another twenty b"), 5))
	if older, err = os.ReadFile(path + ".1"); err != nil {
		t.Fatal(err)
	}
	if newer, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	if len(older) != 100 || !bytes.HasSuffix(all.Bytes(), append(older, newer...)) {
		t.Errorf("after it was continued, it has %d and %d bytes: %q %q", len(older), len(newer), older, newer)
	}
	if again, err := New(path, 100); err != nil {
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
func TestLogBroken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := New(filepath.Join(dir, "log"), 10)
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
	if got := l.LastLines(2); got != "hello you\nhello you" {
		t.Errorf("%q", got)
	}
}

func TestTail(t *testing.T) {
	var l Tail
	text := "one\r\ntwo\x1b[31m\nKernel panic - not syncing: no init\nlast\xff\n"
	if _, err := l.Write([]byte(strings.Repeat("x\n", TailLimit) + text)); err != nil {
		t.Fatal(err)
	}
	if len(l.text) > TailLimit {
		t.Error("keeps", len(l.text))
	}
	if got, want := l.LastLines(4), "one\ntwo[31m\nKernel panic - not syncing: no init\nlast"; got != want {
		t.Errorf("got %q", got)
	}
	if rest, ok := l.LineAfter("Kernel panic - not syncing: "); rest != "no init" || !ok {
		t.Error(rest, ok)
	}
	if rest, ok := l.LineAfter("nothing such"); ok {
		t.Error(rest)
	}
	if got := new(Tail).LastLines(3); got != "" {
		t.Errorf("an empty tail says %q", got)
	}
}
