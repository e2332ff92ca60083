package oci

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLoadRegistries(t *testing.T) {
	docker := save(t, "daemon.json", []byte(`{
		"registry-mirrors": ["https://one.example/", "http://two.example:5000"],
		"insecure-registries": ["lab.example:5000", "10.0.0.0/8", "fd00::/8"],
		"log-driver": "none"}`))
	main := save(t, "registries.conf", []byte(`
		unqualified-search-registries = ["docker.io", "quay.io"]
		short-name-mode = "enforcing"
		[[registry]]
		location = "quay.io"
		blocked = true
		[[registry]]
		prefix = "*.corp.example"
		insecure = true
		[[registry]]
		prefix = "docker.io/library"
		location = "mine.example/official"
		mirror-by-digest-only = true
		[[registry.mirror]]
		location = "near.example"
		insecure = true
		[[registry.mirror]]
		location = "far.example"
		pull-from-mirror = "all"
		[[registry.mirror]]
		location = "tags.example"
		pull-from-mirror = "tag-only"`))
	first := save(t, "10.conf", []byte("[[registry]]\nprefix = \"quay.io\"\nlocation = \"quay.mine.example\"\n"))
	r, err := LoadRegistries(docker, first, "", main, "/nonexistent")
	if err != nil {
		t.Fatal(err)
	}
	type places = []endpoint
	for reference, want := range map[string]places{
		"app":       {{"far.example", "app", false, true}, {"tags.example", "app", false, true}, {"mine.example", "official/app", false, false}},
		"team/app":  {{"one.example", "team/app", false, true}, {"two.example:5000", "team/app", true, true}, {"docker.io", "team/app", false, false}},
		"quay.io/x": {{"quay.mine.example", "x", false, false}},
		"a.corp.example:5/x": {
			{"a.corp.example:5", "x", true, false},
		},
		"corp.example/x":        {{"corp.example", "x", false, false}},
		"notcorp.example/x":     {{"notcorp.example", "x", false, false}},
		"lab.example:5000/x/y":  {{"lab.example:5000", "x/y", true, false}},
		"lab.example:50001/x":   {{"lab.example:50001", "x", false, false}},
		"10.1.2.3:5000/x":       {{"10.1.2.3:5000", "x", true, false}},
		"[fd00::1]:5000/x":      {{"[fd00::1]:5000", "x", true, false}},
		"11.1.2.3/x":            {{"11.1.2.3", "x", false, false}},
		"app:1@" + someDigest:   {{"near.example", "app", true, true}, {"far.example", "app", false, true}, {"mine.example", "official/app", false, false}},
		"docker.io/libraryx/ab": {{"one.example", "libraryx/ab", false, true}, {"two.example:5000", "libraryx/ab", true, true}, {"docker.io", "libraryx/ab", false, false}},
	} {
		ref, err := ParseReference(reference)
		if err != nil {
			t.Fatal(err)
		}
		got := r.endpoints(ref, false)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(endpoint{})); diff != "" {
			t.Errorf("%s: %s", reference, diff)
		}
	}
	ref, _ := ParseReference("quay.io/x")
	if r, err = LoadRegistries("", main); err != nil || len(r.endpoints(ref, false)) != 0 {
		t.Errorf("what is blocked comes from %v, %v", r.endpoints(ref, false), err)
	}
	if got := (Registries{}).endpoints(ref, true); len(got) != 1 || !got[0].insecure {
		t.Errorf("without rules: %v", got)
	}
}

func TestWrongRegistries(t *testing.T) {
	for text, words := range map[string]string{
		"[[registry": "x.conf", "[[registry]]\ninsecure = true\n": "neither prefix nor location",
		"[[registry]]\nprefix = \"x\"\n[[registry.mirror]]\nlocation = \"y\"\npull-from-mirror = \"z\"\n": "digest-only",
	} {
		_, err := LoadRegistries("", save(t, "x.conf", []byte(text)))
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := LoadRegistries(save(t, "daemon.json", []byte("{"))); err == nil || !strings.Contains(err.Error(), "daemon.json") {
		t.Errorf("got %v", err)
	}
}

// TestHostRegistries: the user's own files count, and those beside the main one before it.
func TestHostRegistries(t *testing.T) {
	home := atHome(t)
	containers := filepath.Join(home, ".config/containers")
	writeFile(t, filepath.Join(home, ".config/docker/daemon.json"), []byte(`{"insecure-registries": ["10.0.0.0/8", "a.example"]}`))
	writeFile(t, filepath.Join(containers, "registries.conf"), []byte("[[registry]]\nlocation = \"a.example\"\n"))
	writeFile(t, filepath.Join(containers, "registries.conf.d/1.conf"), []byte("[[registry]]\nlocation = \"b.example\"\n"))
	writeFile(t, filepath.Join(containers, "registries.conf.d/2.conf"), []byte("[[registry]]\nlocation = \"c.example\"\n"))
	writeFile(t, filepath.Join(containers, "registries.conf.d/3.text"), []byte("[["))
	r, err := HostRegistries()
	if err != nil {
		t.Fatal(err)
	}
	rule := func(name string) Rule { return Rule{Prefix: name, Location: name} }
	want := Registries{
		Rules:            []Rule{rule("c.example"), rule("b.example"), rule("a.example"), {Prefix: "a.example", Insecure: true}},
		InsecureNetworks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	}
	if diff := cmp.Diff(want, r, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	t.Setenv("CONTAINERS_REGISTRIES_CONF", save(t, "mine.conf", []byte("[[registry]]\nlocation = \"d.example\"\n")))
	if r, err = HostRegistries(); err != nil || len(r.Rules) != 4 || r.Rules[2].Prefix != "d.example" {
		t.Errorf("got %+v, %v", r, err)
	}
	if err := os.RemoveAll(filepath.Join(home, ".config")); err != nil {
		t.Fatal(err)
	}
}

func FuzzLoadRegistries(f *testing.F) {
	f.Add([]byte("[[registry]]\nprefix = \"*.x\"\nlocation = \"y/z\"\n[[registry.mirror]]\nlocation = \"http://m\"\n"), []byte(`{"registry-mirrors": [""]}`), "a.x/b")
	f.Fuzz(func(t *testing.T, containers, docker []byte, reference string) {
		ref, err := ParseReference(reference)
		if err != nil || ref.Kind != Registry {
			return
		}
		var r Registries
		if r.addContainers(containers) != nil || r.addDocker(docker) != nil {
			return
		}
		for _, e := range r.endpoints(ref, false) {
			if strings.Contains(e.host, "/") {
				t.Errorf("endpoint %+v", e)
			}
		}
	})
}
