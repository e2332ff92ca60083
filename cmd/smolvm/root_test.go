package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// everyVerb calls do with all verbs that people see.
func everyVerb(cmd *cobra.Command, do func(*cobra.Command)) {
	for _, verb := range cmd.Commands() {
		if !verb.Hidden {
			do(verb)
			everyVerb(verb, do)
		}
	}
}

func TestEveryVerbIsExplained(t *testing.T) {
	everyVerb(newRootCommand(&globals{}), func(verb *cobra.Command) {
		path := verb.CommandPath()
		if verb.Short == "" || strings.HasSuffix(verb.Short, ".") {
			t.Errorf("%s: its short help is %q", path, verb.Short)
		}
		if verb.Args == nil {
			t.Errorf("%s does not check its arguments", path)
		}
		if !verb.HasSubCommands() && !strings.Contains(verb.Example, path) {
			t.Errorf("%s has no example of itself", path)
		}
		for line := range strings.Lines(verb.Long + "\n" + verb.Example) {
			if len(line) > 110 {
				t.Errorf("%s: a line is too long for a terminal: %s", path, line)
			}
		}
	})
}

func TestArgsOfUse(t *testing.T) {
	for _, c := range []struct{ use, args, err string }{
		{"x", "", ""},
		{"x", "a", `"a" is too much: x`},
		{"x OLD NEW", "a b", ""},
		{"x OLD NEW", "a", "NEW is missing: x OLD NEW"},
		{"x OLD NEW", "a b c", `"c" is too much: x OLD NEW`},
		{"x VM...", "a b c d", ""},
		{"x VM...", "", "VM is missing: x VM..."},
		{"x [flags] [IMAGE]", "", ""},
		{"x [flags] [IMAGE]", "a b", `"b" is too much: x [flags] [IMAGE]`},
		{"x [VM...]", "", ""},
		{"x VM [PORT...]", "a b c", ""},
	} {
		var got string
		if err := argsOfUse(&cobra.Command{Use: c.use}, strings.Fields(c.args)); err != nil {
			got = err.Error()
		}
		if got != c.err {
			t.Errorf("%q with %q: %q, want %q", c.use, c.args, got, c.err)
		}
	}
}

func TestCompletion(t *testing.T) {
	// The data directory comes from the configuration file, as it may for a verb.
	dir := dataDir(t, "alpha", "beta")
	t.Setenv("SMOLVM_DATA_DIR", "")
	t.Setenv("SMOLVM_CONFIG", filepath.Join(t.TempDir(), "config.toml"))
	if err := os.WriteFile(os.Getenv("SMOLVM_CONFIG"), []byte("data_dir = '"+dir+"'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string][]string{
		"start ":              {"alpha\tcreated", "beta\tcreated"},
		"start alpha ":        {"beta\tcreated"},
		"stop ":               nil, // there is nothing to stop
		"rm ":                 {"alpha\tcreated", "beta\tcreated"},
		"rename ":             {"alpha\tcreated", "beta\tcreated"},
		"rename alpha ":       nil,
		"create --network ":   {"auto", "nat", "user", "none"},
		"run --accel ":        {"kvm", "tcg"},
		"run --transport ":    {"nftables", "ssh_tunnel"},
		"ls --color ":         {"auto", "always", "never"},
		"completion ":         nil,
		"config ":             nil,
		"start --accel kvm a": {"alpha\tcreated", "beta\tcreated"},
	} {
		args := append([]string{"__complete"}, strings.Fields(line)...)
		if strings.HasSuffix(line, " ") {
			args = append(args, "")
		}
		got := invokeAsIs(t, args...)
		var names []string
		for l := range strings.Lines(got.stdout) {
			if !strings.HasPrefix(l, ":") {
				names = append(names, strings.TrimSuffix(l, "\n"))
			}
		}
		if line == "completion " || line == "config " {
			if len(names) == 0 {
				t.Errorf("%q: nothing", line)
			}
			continue
		}
		if got.code != 0 || !slices.Equal(names, want) {
			t.Errorf("%q: %q, want %q", line, names, want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if got := invokeAsIs(t, "completion", shell); got.code != 0 || !strings.Contains(got.stdout, "__complete") {
			t.Errorf("completion %s: exit code %d, %q", shell, got.code, got.stderr)
		}
	}
}

func TestManPages(t *testing.T) {
	dir := t.TempDir() + "/man"
	if got := invoke(t, "man", dir); got.code != 0 {
		t.Fatal(got.stderr)
	}
	everyVerb(newRootCommand(&globals{}), func(verb *cobra.Command) {
		page, err := os.ReadFile(filepath.Join(dir, strings.ReplaceAll(verb.CommandPath(), " ", "-")+".1"))
		if err != nil || !strings.Contains(string(page), "EXAMPLE") && verb.Example != "" {
			t.Errorf("%s: %v", verb.CommandPath(), err)
		}
	})
	if pages, _ := filepath.Glob(dir + "/*-own.1"); len(pages) > 0 {
		t.Errorf("there is a page about what people have no use for: %v", pages)
	}
}
