package image

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestChanges(t *testing.T) {
	base := Config{
		Entrypoint: []string{"/entry"}, Cmd: []string{"old"}, Env: []string{"A=1", "B=2"}, ExposedPorts: []string{"80/tcp"},
		Labels: map[string]string{"kept": "yes"}, WorkingDir: "/srv", User: "root", StopSignal: "SIGTERM",
	}
	for _, c := range []struct {
		lines []string
		want  func(*Config)
	}{
		{nil, func(*Config) {}},
		{[]string{`CMD ["a", "b c"]`}, func(c *Config) { c.Cmd = []string{"a", "b c"} }},
		{[]string{`cmd  echo "$A"; true `}, func(c *Config) { c.Cmd = []string{"/bin/sh", "-c", `echo "$A"; true`} }},
		{[]string{"CMD []"}, func(c *Config) { c.Cmd = []string{} }},
		{[]string{`ENTRYPOINT ["x"]`}, func(c *Config) { c.Entrypoint, c.Cmd = []string{"x"}, nil }},
		{[]string{`CMD ["y"]`, `ENTRYPOINT ["x"]`}, func(c *Config) { c.Entrypoint, c.Cmd = []string{"x"}, []string{"y"} }},
		{[]string{`ENV B=3 C="x y" D=it\ is E='$F' A=`}, func(c *Config) { c.Env = []string{"B=3", "C=x y", "D=it is", "E=$F", "A="} }},
		{[]string{"EXPOSE 8080 53/udp 80", "expose 9/TCP"}, func(c *Config) { c.ExposedPorts = []string{"9/tcp", "53/udp", "80/tcp", "8080/tcp"} }},
		{[]string{`LABEL a=b "c d"="e f"`}, func(c *Config) { c.Labels = map[string]string{"kept": "yes", "a": "b", "c d": "e f"} }},
		{[]string{"USER web:www-data"}, func(c *Config) { c.User = "web:www-data" }},
		{[]string{"WORKDIR data", "WORKDIR ../x"}, func(c *Config) { c.WorkingDir = "/srv/x" }},
		{[]string{`WORKDIR "/my data/"`}, func(c *Config) { c.WorkingDir = "/my data" }},
		{[]string{"STOPSIGNAL SIGRTMIN+3"}, func(c *Config) { c.StopSignal = "SIGRTMIN+3" }},
		{[]string{"STOPSIGNAL 9"}, func(c *Config) { c.StopSignal = "9" }},
	} {
		list, err := parseChanges(c.lines)
		if err != nil {
			t.Errorf("%q: %v", c.lines, err)
			continue
		}
		before := fmt.Sprintf("%q", base)
		want := base
		c.want(&want)
		if got := list.apply(base); !reflect.DeepEqual(got, want) {
			t.Errorf("%q made\n%+v, not\n%+v", c.lines, got, want)
		}
		if fmt.Sprintf("%q", base) != before {
			t.Errorf("%q changed the other image", c.lines)
		}
	}
	if got := must(parseChanges([]string{"LABEL a=b"})).apply(Config{}); got.Labels["a"] != "b" {
		t.Errorf("the first label made %+v", got)
	}
	for _, bad := range []string{
		"", " ", "CMD", "RUN true", "COPY a b", `CMD ["a"`, `CMD ["a"] b`, `CMD [1]`, `CMD ["\u0000"]`, "ENV A", "ENV =b", "ENV A B", `ENV A="b`, `ENV A=\`,
		"EXPOSE 0", "EXPOSE 65536", "EXPOSE 80/icmp", "EXPOSE web", "LABEL x", "USER a b", "WORKDIR a b", `WORKDIR ""`, "STOPSIGNAL 0", "STOPSIGNAL 65",
		"STOPSIGNAL term", "CMD a\nUSER b", "CMD a\x00", "CMD " + strings.Repeat("x", maxChange),
	} {
		if _, err := parseChanges([]string{"USER web", bad}); !errors.Is(err, ErrChange) {
			t.Errorf("%.100q: %v", bad, err)
		}
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// Whatever a change is, it is refused, or what it makes of an image is sound.
func FuzzChange(f *testing.F) {
	for _, line := range []string{`CMD ["a"]`, "ENV A=b C='d e'", "EXPOSE 80/tcp 81", `LABEL "a b"=c`, "WORKDIR x", "USER u:g", "STOPSIGNAL SIGHUP"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		list, err := parseChanges([]string{line})
		if err != nil {
			if !errors.Is(err, ErrChange) {
				t.Fatal(err)
			}
			return
		}
		c := list.apply(Config{WorkingDir: "/a"})
		if !strings.HasPrefix(c.WorkingDir, "/") {
			t.Errorf("it works in %q", c.WorkingDir)
		}
		zero := func(s string) bool { return strings.ContainsRune(s, 0) }
		if slices.ContainsFunc(slices.Concat(c.Cmd, c.Entrypoint, c.Env), zero) || slices.ContainsFunc(c.Env, func(e string) bool { return strings.Index(e, "=") < 1 }) {
			t.Errorf("it says %+v", c)
		}
	})
}
