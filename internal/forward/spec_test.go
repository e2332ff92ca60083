package forward

import (
	"errors"
	"fmt"
	"testing"
)

func TestParseSpec(t *testing.T) {
	for text, want := range map[string]Spec{
		"8000":      {0, 8000},
		"8080:80":   {8080, 80},
		"1:65535":   {1, 65535},
		"65535:1":   {65535, 1},
		"0080:0080": {80, 80},
	} {
		if got, err := ParseSpec(text); err != nil || got != want {
			t.Errorf("ParseSpec(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for text, field := range map[string]string{
		"0": "guest_port", "-1": "guest_port", "65536": "guest_port", "99999999999999999999": "",
		"0:80": "host_port", "70000:80": "host_port", "80:0": "guest_port",
		"": "", ":": "", "80:": "", ":80": "", "a": "", "1:2:3": "", " 80": "", "8 0": "", "80/tcp": "",
	} {
		_, err := ParseSpec(text)
		var port *PortError
		switch {
		case err == nil:
			t.Errorf("ParseSpec(%q) succeeded", text)
		case errors.As(err, &port) != (field != ""), field != "" && port.Field != field:
			t.Errorf("ParseSpec(%q): %v; want an error about the field %q", text, err, field)
		}
	}
}

func FuzzParseSpec(f *testing.F) {
	for _, text := range []string{"8000", "8080:80", "0:1", "::", "1:2:3", "+1:-1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		spec, err := ParseSpec(text)
		if err != nil {
			return
		}
		if !validPort(spec.GuestPort) || spec.HostPort != 0 && !validPort(spec.HostPort) {
			t.Fatalf("ParseSpec(%q) = %v", text, spec)
		}
		canonical := fmt.Sprint(spec.GuestPort)
		if spec.HostPort != 0 {
			canonical = fmt.Sprintf("%d:%d", spec.HostPort, spec.GuestPort)
		}
		if again, err := ParseSpec(canonical); err != nil || again != spec {
			t.Errorf("%q became %v, and that %v, %v", text, spec, again, err)
		}
	})
}
