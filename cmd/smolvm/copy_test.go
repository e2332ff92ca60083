package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

func TestParsePlace(t *testing.T) {
	for text, want := range map[string]place{
		"-":            {stream: true},
		"web:":         {vm: "web"},
		"web:/etc":     {vm: "web", path: "/etc"},
		"web:a:b":      {vm: "web", path: "a:b"},
		"web:-":        {vm: "web", path: "-"},
		"file":         {path: "file"},
		"./a:b":        {path: "./a:b"},
		"../a:b":       {path: "../a:b"},
		".a:b":         {path: ".a:b"},
		"/a:b":         {path: "/a:b"},
		"dir/a:b":      {path: "dir/a:b"},
		":a":           {path: ":a"},
		"":             {},
		"2024-1:notes": {vm: "2024-1", path: "notes"},
	} {
		if got := parsePlace(text); got != want {
			t.Errorf("%q is %+v, not %+v", text, got, want)
		}
	}
}

func FuzzParsePlace(f *testing.F) {
	for _, text := range []string{"-", "web:/x", "./a:b", ":", "a/b:c"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p := parsePlace(text)
		if p.String() != text {
			t.Errorf("%q is %+v, which is written %q", text, p, p)
		}
		if p.vm != "" && strings.ContainsAny(p.vm, ":/") {
			t.Errorf("%q is in a VM of the name %q", text, p.vm)
		}
	})
}

func TestCheckPlaces(t *testing.T) {
	for _, c := range []struct{ from, to, complaint string }{
		{"a", "web:", ""},
		{"web:", "a", ""},
		{"web:", "db:", ""},
		{"-", "web:f", ""},
		{"web:f", "-", ""},
		{"a", "b", "neither side"},
		{"-", "b", "neither side"},
		{"-", "-", "neither side"},
		{"-", "web:", "name is missing"},
		{"-", "web:/srv/", "name is missing"},
		{"web:", "-", "file is missing"},
		{"", "web:", "path is empty"},
		{"web:", "", "path is empty"},
	} {
		err := checkPlaces(parsePlace(c.from), parsePlace(c.to))
		if (err == nil) != (c.complaint == "") || err != nil && !strings.Contains(err.Error(), c.complaint) {
			t.Errorf("%q to %q: %v", c.from, c.to, err)
		}
	}
}

func TestCounting(t *testing.T) {
	var done, total int64
	report := func(d, t int64) { done, total = d, t }
	var out bytes.Buffer
	w := &countingWriter{to: &out, report: report}
	r := &countingReader{from: iotest.HalfReader(strings.NewReader(strings.Repeat("x", 1000))), report: report, total: 2000}
	if _, err := io.Copy(w, r); err != nil || out.Len() != 1000 || w.done != 1000 || r.done != 1000 {
		t.Errorf("%d bytes came, %d and %d were counted: %v", out.Len(), w.done, r.done, err)
	}
	if done != 1000 || total != 2000 {
		t.Errorf("reported were %d of %d at last", done, total)
	}
}

func TestSizeOfFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, 321), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if got := sizeOfFile(file); got != 321 {
		t.Errorf("a file of 321 bytes has %d", got)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if got := sizeOfFile(r); got != 0 {
		t.Errorf("a pipe has %d bytes", got)
	}
}
