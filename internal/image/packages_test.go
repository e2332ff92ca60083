package image

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestPackageHook runs the hook over package lists that have a few names. Names that apt would
// take for patterns, or for a wish that a package be not installed, are none of them.
func TestPackageHook(t *testing.T) {
	bin := t.TempDir()
	cache := "#!/bin/sh\nprintf '%s\\n' \"$APT_CONFIG\" python3 g++ tree tree-sitter\n"
	if err := os.WriteFile(filepath.Join(bin, "apt-cache"), []byte(cache), 0o755); err != nil {
		t.Fatal(err)
	}
	for packages, missing := range map[string]string{
		"": "", "tree": "", "g++ tree tree-sitter": "", "apt-settings": "",
		"nothing": "nothing", "tree nothing tre.* pytho. tree- python3+": "nothing tre.* pytho. tree- python3+",
	} {
		cmd := exec.Command("sh", "-c", packageHook)
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+toolPath(), "MMDEBSTRAP_APT_CONFIG=apt-settings", "SMOLVM_PACKAGES="+packages)
		output, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		told, marked := strings.CutPrefix(string(output), missingMark)
		if got := strings.TrimSpace(told); got != missing || marked != (missing != "") || (err == nil) != (missing == "") {
			t.Errorf("%q: %v, told %q, want %q", packages, err, got, missing)
		}
	}
}

func TestWithPackages(t *testing.T) {
	for want, names := range map[string][]string{
		"": nil, ", with a": {"a"}, ", with a, b, c": {"a", "b", "c"}, ", with a, b, c and 2 more packages": {"a", "b", "c", "d", "e"},
	} {
		if got := withPackages(names); got != want {
			t.Errorf("%q: %q", names, got)
		}
	}
}

func FuzzCheckPackages(f *testing.F) {
	f.Add("tree")
	f.Add("g++")
	f.Add("-o")
	f.Fuzz(func(t *testing.T, name string) {
		names, err := checkPackages([]string{name})
		if err != nil {
			return
		}
		if !slices.Equal(names, []string{name}) || strings.HasPrefix(name, "-") || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789+.-") != "" {
			t.Errorf("%q became %q", name, names)
		}
	})
}
