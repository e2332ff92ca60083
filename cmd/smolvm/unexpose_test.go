package main

import (
	"strings"
	"testing"

	"github.com/smolvm/smolvm"
)

func exposedBy(name string) smolvm.Info {
	udp := forwardTo(5353, 53, smolvm.Active)
	udp.Protocol = smolvm.UDP
	return smolvm.Info{Name: name, Status: smolvm.StatusRunning, Forwards: []smolvm.Forward{
		forwardTo(5353, 80, smolvm.Active), udp, forwardTo(8080, 80, smolvm.Active), forwardTo(8081, 81, smolvm.Active),
	}}
}

func TestChooseForwards(t *testing.T) {
	for texts, want := range map[string]string{
		"8080":                 "127.0.0.1:8080 -> 80",
		"127.0.0.1:8080":       "127.0.0.1:8080 -> 80",
		"localhost:8080":       "127.0.0.1:8080 -> 80",
		"[::1]:8080":           "127.0.0.1:8080 -> 80",
		"8080:80":              "127.0.0.1:8080 -> 80",
		"127.0.0.1:8080:80":    "127.0.0.1:8080 -> 80",
		"8080-8081":            "127.0.0.1:8080 -> 80, 127.0.0.1:8081 -> 81",
		"8080-8081:80-81 5353": "127.0.0.1:8080 -> 80, 127.0.0.1:8081 -> 81, 127.0.0.1:5353 -> 80",
		"5353":                 "127.0.0.1:5353 -> 80",
		"5353/udp":             "127.0.0.1:5353 -> 53/udp",
		"5353:53/udp":          "127.0.0.1:5353 -> 53/udp",
	} {
		wanted, err := parseWanted(strings.Fields(texts))
		if err != nil {
			t.Errorf("%s: %v", texts, err)
			continue
		}
		chosen, err := choose(exposedBy("web"), wanted)
		if err != nil {
			t.Errorf("%s: %v", texts, err)
			continue
		}
		var pairs []string
		for _, f := range chosen {
			pairs = append(pairs, describePair(f.Pair))
		}
		if got := strings.Join(pairs, ", "); got != want {
			t.Errorf("%s is %s, not %s", texts, got, want)
		}
	}
}

func TestUnknownForwardsAreListed(t *testing.T) {
	for _, text := range []string{"80", "8080/udp", "8080:81", "8080-8082"} {
		wanted, err := parseWanted([]string{text})
		if err != nil {
			t.Fatal(err)
		}
		_, err = choose(exposedBy("web"), wanted)
		if err == nil {
			t.Errorf("%s was found", text)
			continue
		}
		for _, want := range []string{"VM web exposes nothing on " + text, "127.0.0.1:5353 -> 53/udp", "127.0.0.1:8081 -> 81"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q lacks %q", text, err, want)
			}
		}
	}
	if _, err := choose(smolvm.Info{Name: "web"}, []wantedForward{{text: "80"}}); err == nil || !strings.Contains(err.Error(), "nothing at all") {
		t.Errorf("with no forwards: %v", err)
	}
}

func TestMisspeltHostPorts(t *testing.T) {
	for _, text := range []string{"", "http", "0", "65536", "80:x", "10.0.0.1:80:80", "127.0.0.1:", "80-70", "80/sctp"} {
		if wanted, err := parseWanted([]string{text}); err == nil {
			t.Errorf("%q is %v", text, wanted)
		}
	}
}
