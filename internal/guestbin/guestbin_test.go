package guestbin

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProgram(t *testing.T) {
	t.Setenv(PathVariable, "")
	_, built := os.Stat(embedded)
	program, err := Program()
	switch {
	case built == nil && (err != nil || program.Size() == 0):
		t.Errorf("it is built, but: %v", err)
	case built != nil && (!errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "run make build, or set SMOLVM_GUEST")):
		t.Errorf("it is not built, but: %v", err)
	}
}

func TestProgramFromVariable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "guest")
	t.Setenv(PathVariable, path)
	if _, err := Program(); !errors.Is(err, ErrMissing) || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), PathVariable) {
		t.Errorf("no file: %v", err)
	}
	for contents, good := range map[string]bool{"\x7fELF...": true, "#!/bin/sh": false, "": false} {
		if err := os.WriteFile(path, []byte(contents), 0o755); err != nil {
			t.Fatal(err)
		}
		program, err := Program()
		if good {
			if err != nil {
				t.Fatalf("%q: %v", contents, err)
			}
			if read, err := io.ReadAll(program); err != nil || string(read) != contents {
				t.Errorf("%q: read %q, %v", contents, read, err)
			}
		}
		if !good && !errors.Is(err, ErrMissing) {
			t.Errorf("%q: %v", contents, err)
		}
	}
}
