package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// configured lets this process have that configuration file.
func configured(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SMOLVM_CONFIG", path)
	return path
}

// TestSettingsCount wants flags over the environment, that over the file, and that over what is
// built in.
func TestSettingsCount(t *testing.T) {
	path := configured(t, "memory = 1024\ncpus = 2\nnetwork = 'none'\n")
	t.Setenv("SMOLVM_CPUS", "3")
	t.Setenv("SMOLVM_NETWORK", "user")
	t.Setenv("SMOLVM_VERBOSE", "")
	var f vmFlags
	g := &globals{}
	cmd := &cobra.Command{Use: "x"}
	f.register(g, cmd)
	g.register(cmd)
	if err := cmd.ParseFlags([]string{"--network", "nat"}); err != nil {
		t.Fatal(err)
	}
	if err := g.settle(cmd); err != nil {
		t.Fatal(err)
	}
	if f.network != "nat" || f.cpus != 3 || f.memory != 1024 || f.image != "debian" || f.disk != 0 || g.verbose {
		t.Errorf("in force: %+v, %+v", f, g)
	}
	got := invokeAsIs(t, "config", "--json", "--color", "never")
	var shown []shownSetting
	if err := json.Unmarshal([]byte(got.stdout), &shown); err != nil {
		t.Fatal(err, got)
	}
	sources := make(map[string]string)
	for _, s := range shown {
		sources[s.Key] = s.Source
	}
	for key, want := range map[string]string{
		"color": "--color", "cpus": "SMOLVM_CPUS", "memory": path, "network": "SMOLVM_NETWORK", "image": "default",
	} {
		if sources[key] != want {
			t.Errorf("%s comes from %q, want %q", key, sources[key], want)
		}
	}
	if got := invokeAsIs(t, "config"); !strings.Contains(got.stdout, path) {
		t.Errorf("config says %q", got.stdout)
	}
	if got := invokeAsIs(t, "config", "path"); got.stdout != path+"\n" {
		t.Errorf("config path says %q", got.stdout)
	}
}

func TestWrongConfiguration(t *testing.T) {
	for text, want := range map[string]string{
		"memory = 'much'":               "line 1: memory must be a whole number",
		"\n\nmemroy = 1":                `line 3: there is no setting "memroy"`,
		"[vm]\nmemory = 1":              `line 2: there is no setting "vm.memory"`,
		"[vm]":                          `line 1: there is no setting "vm"`,
		"a.b = 1":                       `line 1: there is no setting "a.b"`,
		"[[vm]]\nx = 1":                 `line 1: there is no setting "vm"`,
		"network = 'wifi'":              `line 1: network must be auto, nat, user or none, not "wifi"`,
		"cpus = 1.5":                    "line 1: cpus must be a whole number",
		"verbose = 1":                   "line 1: verbose must be true or false",
		"image = ['debian']":            "line 1: image must be a text",
		"data_dir = 'vms'":              `line 1: data_dir must be an absolute path, not "vms"`,
		"memory = 1\nmemory = 2":        "line 2: ",
		"memory":                        "line 1: ",
		"memory = 99999999999999999999": "line 1: ",
	} {
		path := configured(t, text)
		got := invokeAsIs(t, "ls")
		if wholly := "smolvm: configuration file " + path + ": " + want; got.code != exitFailed || !strings.HasPrefix(got.stderr, wholly) || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%q: exit code %d, %q, want %q", text, got.code, got.stderr, wholly)
		}
		// What it takes to mend it works all the same.
		if got := invokeAsIs(t, "config", "path"); got.code != 0 || got.stdout != path+"\n" {
			t.Errorf("config path: exit code %d, %q", got.code, got.stdout)
		}
	}
	for _, verb := range []string{"", "help", "version", "completion bash", "man " + t.TempDir()} {
		if got := invokeAsIs(t, strings.Fields(verb)...); got.code != 0 {
			t.Errorf("%s: exit code %d, %q", verb, got.code, got.stderr)
		}
	}
	// A file that cannot be read is an error, one that is not there is none.
	t.Setenv("SMOLVM_CONFIG", t.TempDir())
	if got := invokeAsIs(t, "config"); got.code != exitFailed || !strings.Contains(got.stderr, os.Getenv("SMOLVM_CONFIG")) {
		t.Errorf("a directory: exit code %d, %q", got.code, got.stderr)
	}
	for _, path := range []string{filepath.Join(t.TempDir(), "none.toml"), "/dev/null/none.toml", "/dev/null"} {
		t.Setenv("SMOLVM_CONFIG", path)
		if got := invokeAsIs(t, "config"); got.code != 0 {
			t.Errorf("%s: exit code %d, %q", path, got.code, got.stderr)
		}
	}
	t.Setenv("SMOLVM_MEMORY", "lots")
	if got := invokeAsIs(t, "config"); got.code != exitFailed || got.stderr != "smolvm: environment variable SMOLVM_MEMORY: memory must be a whole number, not \"lots\"\n" {
		t.Errorf("a wrong variable: exit code %d, %q", got.code, got.stderr)
	}
}

func FuzzConfig(f *testing.F) {
	for _, seed := range []string{
		"memory = 1024\nimage = \"debian\"\n", "[a.b]\nc = 1", "a.b.c = {d = [1, {e = 2}]}", "data_dir = '/x'\nverbose = true", "[[a]]\n[[a.b]]", "\"\\u0000\" = 1", "\"\\",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		values, err := parseConfig(data)
		if err != nil {
			if line := plain(err.Error()); !strings.HasPrefix(line, "line ") || strings.HasPrefix(line, "line 0") {
				t.Errorf("the error does not tell the line: %q", line)
			}
			return
		}
		for _, s := range settings() {
			if value, ok := values[s.key]; ok && s.check(value) != nil {
				t.Errorf("%s is %v", s.key, value)
			}
			delete(values, s.key)
		}
		if len(values) > 0 {
			t.Errorf("settings that do not exist: %v", values)
		}
	})
}
