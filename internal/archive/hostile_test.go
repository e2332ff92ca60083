package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// made writes an archive of headers, with what is in files.
func made(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	all := append([]tar.Header{{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{sizeRecord: "-7"}}}, headers...)
	all = append(all, tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{endRecord: "1"}})
	for _, h := range all {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func dirEntry(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}
}
func fileEntry(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: 4}
}
func linkEntry(kind byte, name, target string) tar.Header {
	return tar.Header{Typeflag: kind, Name: name, Linkname: target}
}

// beside returns what is in top but directories to extract to.
func beside(t *testing.T, top string) []string {
	t.Helper()
	entries, err := os.ReadDir(top)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "dst") {
			paths = append(paths, filepath.Join(top, e.Name()))
		}
	}
	return paths
}

// extractCarelessly believes all that an archive says.
func extractCarelessly(t *testing.T, data []byte, dst string) {
	t.Helper()
	at := func(name string) string {
		if filepath.IsAbs(name) {
			return name
		}
		return dst + "/" + name
	}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		switch {
		case err != nil:
		case h.Typeflag == tar.TypeDir:
			if _, err = os.Stat(at(h.Name)); err != nil {
				err = os.Mkdir(at(h.Name), 0o755)
			}
		case h.Typeflag == tar.TypeReg:
			err = os.WriteFile(at(h.Name), []byte("escaped"), 0o644)
		case h.Typeflag == tar.TypeSymlink:
			_ = os.Remove(at(h.Name))
			err = os.Symlink(h.Linkname, at(h.Name))
		case h.Typeflag == tar.TypeLink:
			if err = os.Link(at(h.Linkname), at(h.Name)); err == nil {
				err = os.WriteFile(at(h.Name), []byte("escaped"), 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Nothing that an archive says reaches out of the directory that it goes to.
func TestHostileArchives(t *testing.T) {
	top, outside := t.TempDir(), t.TempDir()
	write(t, outside+"/secret", "secret", 0o600)
	setOld(t, outside)
	before := describe(t, outside)
	escapes := map[string]bool{
		"absolute": true, "absolute first": true, "up": true, "through a link": true, "link as directory": true,
		"directory to link": true, "hard link out": true, "hard link by a link": true,
	}
	for name, headers := range map[string][]tar.Header{
		"absolute":              {dirEntry("d"), fileEntry(outside + "/x")},
		"absolute first":        {fileEntry(outside + "/x")},
		"up":                    {dirEntry("d"), fileEntry("d/../../x")},
		"up first":              {dirEntry("..")},
		"beside":                {dirEntry("d"), fileEntry("e")},
		"its own name":          {dirEntry("d"), dirEntry("d")},
		"empty part":            {dirEntry("d"), fileEntry("d//x")},
		"dot":                   {dirEntry("d"), fileEntry("d/./x")},
		"no directory":          {dirEntry("d"), fileEntry("d/e/x")},
		"directory gone":        {dirEntry("d"), dirEntry("d/a"), dirEntry("d/b"), fileEntry("d/a/x")},
		"below a file":          {fileEntry("d"), fileEntry("d/x")},
		"through a link":        {dirEntry("d"), linkEntry(tar.TypeSymlink, "d/l", outside), fileEntry("d/l/x")},
		"link as directory":     {dirEntry("d"), linkEntry(tar.TypeSymlink, "d/l", outside), dirEntry("d/l"), fileEntry("d/l/x")},
		"directory to link":     {dirEntry("d"), dirEntry("d/l"), linkEntry(tar.TypeSymlink, "d/l", outside), fileEntry("d/l/x")},
		"hard link out":         {dirEntry("d"), linkEntry(tar.TypeLink, "d/l", outside+"/secret")},
		"hard link up":          {dirEntry("d"), linkEntry(tar.TypeLink, "d/l", "d/../../secret")},
		"hard link elsewhere":   {dirEntry("d"), linkEntry(tar.TypeLink, "d/l", "secret")},
		"hard link by a link":   {dirEntry("d"), linkEntry(tar.TypeSymlink, "d/s", outside), linkEntry(tar.TypeLink, "d/l", "d/s/secret")},
		"hard link first":       {linkEntry(tar.TypeLink, "l", outside+"/secret")},
		"device":                {dirEntry("d"), {Typeflag: tar.TypeChar, Name: "d/null", Devmajor: 1, Devminor: 3}},
		"block device first":    {{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8}},
		"pipe":                  {dirEntry("d"), {Typeflag: tar.TypeFifo, Name: "d/pipe"}},
		"contents of a file":    {fileEntry(".")},
		"no name":               {dirEntry("/")},
		"long name":             {dirEntry("d"), fileEntry("d/" + strings.Repeat("a/", maxPath) + "a")},
		"another global header": {dirEntry("d"), {Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"SMOLVM.other": "1"}}},
		"nothing":               {},
	} {
		t.Run(name, func(t *testing.T) {
			dst, err := os.MkdirTemp(top, "dst")
			if err != nil {
				t.Fatal(err)
			}
			err = Extract(t.Context(), bytes.NewReader(made(t, headers...)), dst, ExtractOptions{SetID: true})
			if err == nil {
				t.Error("it went well")
			} else if strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("the message is not for a terminal: %q", err)
			}
			same(t, "what is outside", describe(t, outside), before)
			if made := beside(t, top); len(made) > 0 {
				t.Errorf("made %q beside its directory", made)
			}
			for path, text := range describe(t, dst) {
				if strings.HasPrefix(text, "p") || strings.HasPrefix(text, "D") {
					t.Errorf("made %s: %s", path, text)
				}
			}
			if !escapes[name] {
				return
			}
			// It does reach out where nobody takes care.
			careless, err := os.MkdirTemp(top, "dst")
			if err != nil {
				t.Fatal(err)
			}
			extractCarelessly(t, made(t, headers...), careless)
			escaped := beside(t, top)
			if len(escaped) == 0 && maps.Equal(describe(t, outside), before) {
				t.Error("it is harmless anyway")
			}
			for _, path := range append(escaped, outside+"/x", careless) {
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
			}
			write(t, outside+"/secret", "secret", 0o600)
			setOld(t, outside)
		})
	}
	// Links of the user's own that are there already lead nowhere, either.
	dst := t.TempDir()
	mkdir(t, dst+"/d", 0o755)
	symlink(t, outside, dst+"/d/l")
	symlink(t, outside+"/secret", dst+"/d/f")
	if err := Extract(t.Context(), bytes.NewReader(made(t, dirEntry("d"), dirEntry("d/l"), fileEntry("d/l/x"))), dst, ExtractOptions{}); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("got %v", err)
	}
	if err := Extract(t.Context(), bytes.NewReader(made(t, dirEntry("d"), fileEntry("d/f"))), dst, ExtractOptions{}); err != nil {
		t.Error(err)
	}
	same(t, "what is outside", describe(t, outside), before)
	// A hard link is a link, whatever mode and time the archive says that it has.
	h := linkEntry(tar.TypeLink, "d/same", "d/mine")
	h.Mode = 0o777
	write(t, dst+"/d/mine", "mine", 0o600)
	if err := Extract(t.Context(), bytes.NewReader(made(t, dirEntry("d"), h)), dst, ExtractOptions{}); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(dst + "/d/mine"); err != nil || info.Mode() != 0o600 {
		t.Errorf("its mode has changed: %v, %v", info, err)
	}
}

func FuzzExtract(f *testing.F) {
	dir := f.TempDir()
	makeTree(f, dir+"/tree")
	if err := os.Truncate(dir+"/tree/big", 700); err != nil {
		f.Fatal(err)
	}
	if err := os.Truncate(dir+"/tree/buffer", 7); err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	if err := Pack(context.Background(), &b, dir+"/tree", PackOptions{}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(made(f, dirEntry("d"), linkEntry(tar.TypeSymlink, "d/l", ".."), fileEntry("d/l/x")))
	f.Add(made(f, dirEntry("d"), fileEntry("d/x"), linkEntry(tar.TypeLink, "d/l", "d/x"), linkEntry(tar.TypeLink, "d/x", "d/l")))
	f.Add(made(f, dirEntry("."), dirEntry("./a"), fileEntry("./a/b")))
	f.Fuzz(func(t *testing.T, data []byte) {
		top := t.TempDir()
		write(t, top+"/secret", "secret", 0o600)
		mkdir(t, top+"/dst", 0o755)
		symlink(t, "../secret", top+"/dst/x")
		setOld(t, top)
		before, err := os.Stat(top + "/secret")
		if err != nil {
			t.Fatal(err)
		}
		_ = Extract(t.Context(), bytes.NewReader(data), top+"/dst", ExtractOptions{})
		after, err := os.Stat(top + "/secret")
		if err != nil || !after.ModTime().Equal(before.ModTime()) || after.Mode() != before.Mode() || after.Sys().(*syscall.Stat_t).Nlink != 1 {
			t.Fatalf("the secret has changed: %v, %v", after, err)
		}
		if entries, err := os.ReadDir(top); err != nil || len(entries) != 2 {
			t.Fatalf("beside its directory: %v, %v", entries, err)
		}
		err = filepath.WalkDir(top+"/dst", func(path string, d fs.DirEntry, err error) error {
			if err == nil && (strings.HasPrefix(d.Name(), ".smolvm-") || !d.IsDir() && !d.Type().IsRegular() && d.Type() != fs.ModeSymlink) {
				t.Errorf("made %q", path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			t.Fatal(err)
		}
	})
}
