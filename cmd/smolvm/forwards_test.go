package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/smolvm/smolvm"
)

func TestForwardJSON(t *testing.T) {
	f := smolvm.Forward{
		Pair:      smolvm.Pair{HostPort: 5353, GuestPort: 53, Protocol: smolvm.UDP},
		Transport: smolvm.SSHTunnel, Reason: "no permission", Health: smolvm.Waiting,
		Traffic: smolvm.Traffic{Open: 1, Total: 2, ToGuest: 3, FromGuest: 4},
	}
	for _, c := range []struct {
		value any
		want  string
	}{
		{withVM("web", []smolvm.Forward{f}), `[{"vm":"web","host_port":5353,"guest_port":53,"proto":"udp","transport":"ssh_tunnel","reason":"no permission",` +
			`"health":"waiting","connections_open":1,"connections_total":2,"bytes_to_guest":3,"bytes_from_guest":4}]`},
		{portEvent{"changed", "web", f.Pair, f.Transport, f.Reason, f.Health}, `{"event":"changed","vm":"web","host_port":5353,"guest_port":53,"proto":"udp",` +
			`"transport":"ssh_tunnel","reason":"no permission","health":"waiting"}`},
		{forwardsOf(nil), `[]`},
	} {
		got, err := json.Marshal(c.value)
		if err != nil || string(got) != c.want {
			t.Errorf("%s, %v", got, err)
		}
	}
}

func TestPrintExposed(t *testing.T) {
	var out strings.Builder
	forwards := []smolvm.Forward{forwardTo(8080, 80, smolvm.Active), forwardTo(9000, 9000, smolvm.Active)}
	if err := printExposed(&out, forwards, false); err != nil {
		t.Fatal(err)
	}
	if want := "127.0.0.1:8080\n127.0.0.1:9000\n"; out.String() != want {
		t.Errorf("a script reads %q", out.String())
	}
}

func TestPrintForwards(t *testing.T) {
	f := forwardTo(8080, 80, smolvm.Down)
	f.Reason = "the guest\x1b[2J says so"
	var out strings.Builder
	if err := printForwards(&out, []vmForward{{"web", f}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"127.0.0.1:8080", "nftables", "down", "says so"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q lacks %q", out.String(), want)
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("%q is not safe for a terminal", out.String())
	}
}
