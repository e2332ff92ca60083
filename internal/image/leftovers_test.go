package image

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestClean(t *testing.T) {
	s, images := threeVersions(t)
	guest := guestProgram("guest")
	path := map[string]string{}
	for name, of := range map[string]struct {
		img   *Image
		guest *io.SectionReader
	}{
		"needed": {images[0], guest}, "doomed": {images[1], guest}, "of another guest program": {images[0], guestProgram("old")}, "just asked for": {images[0], guestProgram("older")},
	} {
		made, err := s.Initrd(t.Context(), of.img, of.guest)
		if err != nil {
			t.Fatal(err)
		}
		path[name] = made
		if old := time.Now().Add(-2 * initrdInUse); name != "just asked for" {
			if err := os.Chtimes(made, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	path["killed build"] = filepath.Join(s.dir, fakeName, buildPrefix+"dead")
	if err := os.Mkdir(path["killed build"], 0o755); err != nil {
		t.Fatal(err)
	}
	// A build under way is none that was killed.
	busy, err := s.enter(t.Context(), "busy", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer busy.leave()
	path["build under way"] = filepath.Join(busy.dir, buildPrefix+"alive")
	if err := os.Mkdir(path["build under way"], 0o755); err != nil {
		t.Fatal(err)
	}
	doomed := []Version{{Image: images[1]}}
	for _, dryRun := range []bool{true, false} {
		left, err := s.Clean(t.Context(), guest, doomed, dryRun)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, l := range left {
			names = append(names, l.Path)
			if l.Bytes <= 0 {
				t.Errorf("%s takes %d bytes", l.Path, l.Bytes)
			}
		}
		told := strings.Join(names, " ")
		for name, file := range path {
			unneeded := name == "doomed" || name == "of another guest program" || name == "killed build"
			within, err := filepath.Rel(s.dir, file)
			if err != nil || strings.Contains(told, within) != unneeded {
				t.Errorf("%s: told: %v, %v", name, !unneeded, err)
			}
			if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) != (unneeded && !dryRun) {
				t.Errorf("%s with dryRun %v: %v", name, dryRun, err)
			}
		}
	}
	if left, err := s.Clean(t.Context(), guest, doomed, false); err != nil || len(left) != 0 {
		t.Errorf("a second time: %v, %v", left, err)
	}
	empty, _ := fakeStore(t, nil)
	if left, err := empty.Clean(t.Context(), guest, nil, false); err != nil || len(left) != 0 {
		t.Errorf("an empty store: %v, %v", left, err)
	}
}
