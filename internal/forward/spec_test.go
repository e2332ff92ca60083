package forward

import (
	"errors"
	"strings"
	"testing"
)

func TestParseSpec(t *testing.T) {
	for text, want := range map[string]Spec{
		"8000":                      {0, 8000, 1, TCP},
		"8080:80":                   {8080, 80, 1, TCP},
		"1:65535":                   {1, 65535, 1, TCP},
		"65535:1":                   {65535, 1, 1, TCP},
		"0080:0080":                 {80, 80, 1, TCP},
		"80/tcp":                    {0, 80, 1, TCP},
		"5353:53/udp":               {5353, 53, 1, UDP},
		"53/UDP":                    {0, 53, 1, UDP},
		"8000-8010":                 {0, 8000, 11, TCP},
		"8000-8010:9000-9010/udp":   {8000, 9000, 11, UDP},
		"8000-8000:80":              {8000, 80, 1, TCP},
		"1-65535":                   {0, 1, 65535, TCP},
		"127.0.0.1:8080:80":         {8080, 80, 1, TCP},
		"localhost:8080:80":         {8080, 80, 1, TCP},
		"LOCALHOST:8080:80":         {8080, 80, 1, TCP},
		"[::1]:8080:80":             {8080, 80, 1, TCP},
		"::1:8080:80":               {8080, 80, 1, TCP},
		"[127.0.0.1]:8080:80":       {8080, 80, 1, TCP},
		"127.0.0.1::80":             {0, 80, 1, TCP},
		"::1::80":                   {0, 80, 1, TCP},
		"localhost:1-2:3-4/udp":     {1, 3, 2, UDP},
		"127.0.0.1:8080-8081:80-81": {8080, 80, 2, TCP},
	} {
		if got, err := ParseSpec(text); err != nil || got != want {
			t.Errorf("ParseSpec(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
}

func TestParseSpecRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"0": "guest_port must be 1-65535", "65536": "guest_port must be 1-65535", "99999999999999999999": "guest_port must be 1-65535",
		"0:80": "host_port must be 1-65535", "70000:80": "host_port must be 1-65535", "80:0": "guest_port must be 1-65535",
		"0-5": "guest_port must be 1-65535", "65530-65536": "guest_port must be 1-65535", "65535-65536:1-2": "host_port must be 1-65535",
		"": "no port number", ":": "no port number", "80:": "no port number", ":80": "no port number", "a": "no port number",
		" 80": "no port number", "8 0": "no port number", "+80": "no port number", "-1": "no port number", "0x50": "no port number", "80-": "no port number",
		"1-2-3": "no port number", "٨٠": "no port number",
		"80/": "after the slash", "80/sctp": "after the slash", "80/tcp/udp": "after the slash",
		"90-80": "ends before it begins", "8000-8002:80-81": "3 ports of the host cannot lead to 2", "8000:80-81": "1 ports", "8000-8001:80": "2 ports",
		"0.0.0.0:8080:80": "reverse proxy", "192.0.2.1:8080:80": "reverse proxy", "[::]:8080:80": "reverse proxy", "*:8080:80": "reverse proxy",
		"example.org:8080:80": "reverse proxy", "127.0.0.2:8080:80": "reverse proxy", ":8080:80": "reverse proxy", "1:2:3": "reverse proxy", "0.0.0.0::80": "reverse proxy",
		"localhost:80": "localhost:HOST_PORT:80", "127.0.0.1:80": "127.0.0.1::80", "0.0.0.0:80": "host's port is missing",
	} {
		_, err := ParseSpec(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseSpec(%q): %v; want an error that says %q", text, err, want)
			continue
		}
		if field, _, isPort := strings.Cut(want, " must be"); isPort {
			var port *PortError
			if !errors.As(err, &port) || port.Field != field {
				t.Errorf("ParseSpec(%q): %#v is no PortError about %s", text, err, field)
			}
		} else if !errors.Is(err, ErrInvalidSpec) {
			t.Errorf("ParseSpec(%q): %v is not ErrInvalidSpec", text, err)
		}
	}
}

func TestSpecRequests(t *testing.T) {
	spec, err := ParseSpec("8000-8002:9000-9002/udp")
	if err != nil {
		t.Fatal(err)
	}
	reqs := spec.Requests()
	if len(reqs) != 3 {
		t.Fatal(reqs)
	}
	for i, r := range reqs {
		if r.HostPort != 8000+i || !r.HostPortSet || r.GuestPort != 9000+i || r.Protocol != UDP || r.Validate() != nil {
			t.Errorf("request %d: %+v", i, r)
		}
	}
	if reqs := (Spec{GuestPort: 80}).Requests(); len(reqs) != 1 || reqs[0].HostPortSet || reqs[0].Protocol != TCP {
		t.Errorf("of a plain port: %+v", reqs)
	}
}

func FuzzParseSpec(f *testing.F) {
	for _, text := range []string{
		"8000", "8080:80", "0:1", "::", "1:2:3", "+1:-1", "127.0.0.1:1:2/udp", "[::1]:1-3:4-6", "::1::80", "localhost:5", "0.0.0.0:1:1", "1-65535:1-65535/tcp",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		spec, err := ParseSpec(text)
		if err != nil {
			if !errors.Is(err, ErrInvalidSpec) && !errors.Is(err, ErrInvalidPort) {
				t.Fatalf("ParseSpec(%q): %v has no kind", text, err)
			}
			return
		}
		for _, r := range spec.Requests() {
			if err := r.Validate(); err != nil {
				t.Fatalf("ParseSpec(%q) = %v: %v", text, spec, err)
			}
		}
		if again, err := ParseSpec(spec.String()); err != nil || again != spec {
			t.Errorf("%q became %v, and that %v, %v", text, spec, again, err)
		}
	})
}
