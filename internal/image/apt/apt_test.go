package apt

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRelease(t *testing.T) {
	got := ParseRelease([]byte("# comment\nPRETTY_NAME=\"Example \\\"One\\\"\"\nID=debian\nVERSION_CODENAME='bookworm'\nnonsense\n"))
	want := Release{ID: "debian", Codename: "bookworm", Name: `Example "One"`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseList(t *testing.T) {
	got, err := ParseList([]byte(`
# a comment
deb http://example.org/debian bookworm main contrib # and another
deb-src [ arch=amd64,arm64 signed-by=/a.gpg,/b.gpg trusted=yes ] https://example.org/x stable
deb [arch+=i386] http://example.org/flat ./
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{
		{Types: []string{"deb"}, URIs: []string{"http://example.org/debian"}, Suites: []string{"bookworm"}, Components: []string{"main", "contrib"}},
		{Types: []string{"deb-src"}, URIs: []string{"https://example.org/x"}, Suites: []string{"stable"}, Components: []string{}, Options: []Field{
			{"Architectures", "amd64 arm64"}, {"Signed-By", "/a.gpg /b.gpg"}, {"trusted", "yes"},
		}},
		{Types: []string{"deb"}, URIs: []string{"http://example.org/flat"}, Suites: []string{"./"}, Components: []string{}, Options: []Field{{"Architectures-Add", "i386"}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if files := got[1].Keyrings(); !cmp.Equal(files, []string{"/a.gpg", "/b.gpg"}) {
		t.Errorf("Keyrings() = %q", files)
	}
}

func TestParseListRefuses(t *testing.T) {
	for _, line := range []string{"rpm http://example.org stable main", "deb", "deb http://example.org", "deb [arch=amd64 http://example.org stable main", "deb [arch] http://example.org stable main"} {
		if got, err := ParseList([]byte("\n" + line)); err == nil {
			t.Errorf("ParseList(%q) = %v, want an error", line, got)
		} else if !strings.Contains(err.Error(), "line 2") {
			t.Errorf("ParseList(%q): %v, want the line's number", line, err)
		}
	}
}

const stanzas = `# the distribution
Types: deb deb-src
URIs: http://example.org/debian
Suites: bookworm bookworm-updates
 bookworm-backports
# in the middle
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc=

types: deb
uris: http://example.com/off
suites: bookworm
enabled: no
`

func TestParseSources(t *testing.T) {
	got, err := ParseSources([]byte(stanzas))
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{{
		Types: []string{"deb", "deb-src"}, URIs: []string{"http://example.org/debian"},
		Suites: []string{"bookworm", "bookworm-updates", "bookworm-backports"}, Components: []string{"main", "contrib"},
		Options: []Field{{"Signed-By", "\n-----BEGIN PGP PUBLIC KEY BLOCK-----\n.\nabc="}},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	again, err := ParseSources(Format(got))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, again); diff != "" {
		t.Errorf("written and read again: %s", diff)
	}
}

func TestParseSourcesRefuses(t *testing.T) {
	for _, text := range []string{" continues nothing\n", "no field\n", "Types: deb\nSuites: x\n", ": empty\n"} {
		if got, err := ParseSources([]byte(text)); err == nil {
			t.Errorf("ParseSources(%q) = %v, want an error", text, got)
		}
	}
}

func TestReadSources(t *testing.T) {
	etc := t.TempDir()
	if err := os.Mkdir(filepath.Join(etc, "sources.list.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"sources.list":                   "deb http://example.org/a bookworm main\n",
		"sources.list.d/b.list":          "deb http://example.org/b bookworm main\n",
		"sources.list.d/c.sources":       "Types: deb\nURIs: http://example.org/c\nSuites: bookworm\n",
		"sources.list.d/d.list.disabled": "garbage\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := ReadSources(etc)
	if err != nil {
		t.Fatal(err)
	}
	var uris []string
	for _, e := range entries {
		uris = append(uris, e.URIs...)
	}
	if want := []string{"http://example.org/a", "http://example.org/b", "http://example.org/c"}; !cmp.Equal(uris, want) {
		t.Errorf("URIs %q, want %q", uris, want)
	}
	if err := os.WriteFile(filepath.Join(etc, "sources.list"), []byte("garbage\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSources(etc); err == nil || !strings.Contains(err.Error(), filepath.Join(etc, "sources.list")) {
		t.Errorf("ReadSources of garbage: %v, want an error with the file", err)
	}
}

func TestSelect(t *testing.T) {
	release := Release{ID: "debian", Codename: "bookworm"}
	entry := func(uri, suites, components, key string) Entry {
		e := Entry{Types: []string{"deb"}, URIs: strings.Fields(uri), Suites: strings.Fields(suites), Components: strings.Fields(components)}
		if key != "" {
			e.Options = []Field{{"Signed-By", key}}
		}
		return e
	}
	const own = "/usr/share/keyrings/debian-archive-keyring.gpg"
	keptURIs := func(entries ...Entry) []string {
		uris := []string{}
		for _, e := range Select(entries, release, "amd64") {
			uris = append(uris, e.URIs...)
		}
		return uris
	}

	distribution := entry("http://example.org/debian", "bookworm bookworm-updates bookworm-backports", "main contrib", own)
	got := Select([]Entry{distribution}, release, "amd64")
	want := []Entry{entry("http://example.org/debian", "bookworm bookworm-updates", "main", own)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	// Each of these differs from what is kept in one thing.
	source, foreign := distribution, distribution
	source.Types = []string{"deb-src"}
	foreign.Options = []Field{{"Architectures", "arm64"}}
	for name, e := range map[string]Entry{
		"other suite":        entry("http://example.org/x", "stable", "main", own),
		"third party suite":  entry("http://example.org/x", "bookworm-example", "main", own),
		"other component":    entry("http://example.org/x", "bookworm", "stable", own),
		"not for a guest":    entry("file:/srv/x cdrom:x", "bookworm", "main", own),
		"source packages":    source,
		"other architecture": foreign,
	} {
		if uris := keptURIs(e); len(uris) != 0 {
			t.Errorf("%s: kept %q", name, uris)
		}
	}

	thirdParty := entry("http://example.com/x", "bookworm", "main", "/etc/apt/keyrings/x.asc")
	if uris := keptURIs(distribution, thirdParty); !cmp.Equal(uris, distribution.URIs) {
		t.Errorf("beside the distribution's own: kept %q", uris)
	}
	if uris := keptURIs(thirdParty); !cmp.Equal(uris, thirdParty.URIs) {
		t.Errorf("a mirror with keys of its own: kept %q", uris)
	}
}

func TestExpandMirrors(t *testing.T) {
	entries := []Entry{{URIs: []string{"mirror+file:///etc/apt/mirrors/x.list", "http://example.org/b"}}}
	read := func(path string) ([]byte, error) {
		if path != "/etc/apt/mirrors/x.list" {
			return nil, errors.New("wrong path " + path)
		}
		return []byte("# comment\n\nhttp://example.org/a\tpriority:1\n"), nil
	}
	got, err := ExpandMirrors(entries, read)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"http://example.org/a", "http://example.org/b"}; !cmp.Equal(got[0].URIs, want) {
		t.Errorf("URIs %q, want %q", got[0].URIs, want)
	}
	if entries[0].URIs[0] != "mirror+file:///etc/apt/mirrors/x.list" {
		t.Error("the argument was changed")
	}
	if _, err := ExpandMirrors(entries, func(string) ([]byte, error) { return nil, nil }); err == nil {
		t.Error("an empty list of mirrors is no error")
	}
}

func TestConfig(t *testing.T) {
	settings := ParseConfig([]byte(`APT "";
APT::Architecture "amd64";
Acquire::http::Proxy "http://127.0.0.1:3142/";
Acquire::https::Proxy "http://proxy.example.org:3128/%3d";
Acquire::https::CaInfo "/etc/ssl/own.pem";
Acquire::http::Proxy-Auto-Detect "helper";
Acquire::Check-Valid-Until "false";
Acquire::Languages:: "none";
no setting
`))
	fetching := Fetching(settings)
	want := []Setting{
		{"Acquire::http::Proxy", "http://127.0.0.1:3142/"},
		{"Acquire::https::Proxy", "http://proxy.example.org:3128/="},
		{"Acquire::https::CaInfo", "/etc/ssl/own.pem"},
		{"Acquire::http::Proxy-Auto-Detect", "helper"},
		{"Acquire::Check-Valid-Until", "false"},
	}
	if diff := cmp.Diff(want, fetching); diff != "" {
		t.Error(diff)
	}
	got := string(FormatConfig(ForGuest(fetching)))
	if want := "Acquire::https::Proxy \"http://proxy.example.org:3128/=\";\nAcquire::Check-Valid-Until \"false\";\n"; got != want {
		t.Errorf("for the guest:\n%swant:\n%s", got, want)
	}
	if got := FormatConfig([]Setting{{"A", "quote\""}, {"B;", "x"}, {"C", "line\nbreak"}}); len(got) != 0 {
		t.Errorf("wrote what cannot be written: %s", got)
	}
}

func TestEnvironmentProxies(t *testing.T) {
	env := map[string]string{"http_proxy": "http://proxy.example.org:1/", "https_proxy": "http://proxy.example.org:2/"}
	got := EnvironmentProxies([]Setting{{"acquire::HTTPS::proxy", "DIRECT"}}, func(k string) string { return env[k] })
	if want := []Setting{{"Acquire::http::Proxy", "http://proxy.example.org:1/"}}; !cmp.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestLoopbackProxies(t *testing.T) {
	for proxy, want := range map[string]bool{
		"http://localhost:1/": true, "http://LOCALHOST.:1": true, "http://a.localhost": true, "http://127.9.9.9:1": true,
		"http://[::1]:1": true, "http://[::ffff:127.0.0.1]:1": true, "http://0.0.0.0:1": true,
		"http://10.0.0.1:1": false, "http://localhost.example.org": false, "DIRECT": false, "http://[::1": false,
	} {
		if got := isLoopback(proxy); got != want {
			t.Errorf("isLoopback(%q) = %v", proxy, got)
		}
	}
}

func FuzzParseSources(f *testing.F) {
	f.Add([]byte(stanzas))
	f.Fuzz(func(t *testing.T, data []byte) { roundTrip(t, data, ParseSources) })
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte("deb [arch=amd64 signed-by=/a] http://example.org bookworm main # x\n"))
	f.Fuzz(func(t *testing.T, data []byte) { roundTrip(t, data, ParseList) })
}

// roundTrip checks that what was read is the same when it is written and read again.
func roundTrip(t *testing.T, data []byte, parse func([]byte) ([]Entry, error)) {
	entries, err := parse(data)
	if err != nil {
		return
	}
	again, err := ParseSources(Format(entries))
	if err != nil {
		t.Fatalf("read what was written: %v\n%s", err, Format(entries))
	}
	ignoreEmpty := cmp.FilterValues(func(a, b []string) bool { return len(a) == 0 && len(b) == 0 }, cmp.Ignore())
	noEntries := cmp.FilterValues(func(a, b []Entry) bool { return len(a) == 0 && len(b) == 0 }, cmp.Ignore())
	if diff := cmp.Diff(entries, again, ignoreEmpty, noEntries); diff != "" {
		t.Fatalf("%s\n%s", diff, Format(entries))
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("Acquire::http::Proxy \"http://example.org%3d\";\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		settings := ParseConfig(data)
		FormatConfig(ForGuest(Fetching(settings)))
	})
}

func FuzzParseRelease(f *testing.F) {
	f.Add([]byte("ID=\"de\\\"bian\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) { ParseRelease(data) })
}
