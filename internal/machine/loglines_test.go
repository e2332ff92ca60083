package machine

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func FuzzLastLines(f *testing.F) {
	f.Add("a\nb", "c\nd\n", 2)
	f.Add("", "\n\n", 1)
	f.Add("a\n", "", 1)
	f.Fuzz(checkLastLines)
}

// TestLastLinesOfLongLogs has logs that are not read at once.
func TestLastLinesOfLongLogs(t *testing.T) {
	older, present := strings.Repeat("line\n", 10000), strings.Repeat("another\n", 5000)+strings.Repeat("long", 10000)
	for _, lines := range []int{1, 2, 4999, 5001, 5002, 14000, 15001, 15002} {
		checkLastLines(t, older, present, lines)
	}
}

// checkLastLines reads the last lines of a log and finds them in a simpler way.
func checkLastLines(t *testing.T, older, present string, lines int) {
	if lines < 1 {
		return
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"log.1": older, "log": present} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	opened, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := &logReader{ctx: t.Context(), dir: opened, name: "log", closed: make(chan struct{})}
	if err := r.begin(lines); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	parts := strings.SplitAfter(older+present, "\n")
	if parts[len(parts)-1] == "" {
		parts = parts[:len(parts)-1]
	}
	if want := strings.Join(parts[max(0, len(parts)-lines):], ""); string(got) != want {
		t.Errorf("the last %d lines of %.100q and %.100q: %.100q, want %.100q", lines, older, present, got, want)
	}
}
