package network

import (
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestObstacles compares what is said of firewalls with what really gets through them,
// and then takes the advice.
func TestObstacles(t *testing.T) {
	s := newScene(t)
	var here net.Dialer
	works := func(kind Traffic) bool {
		dial, address := here.DialContext, "127.0.0.1:8000"
		if kind == Egress {
			dial, address = s.guestA.Dial, "192.0.2.2:80"
		}
		_, err := greeting(impatience, dial, address)
		return err == nil
	}
	obstacles := func() []Obstacle {
		found, err := s.host.Obstacles(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	for _, test := range []struct {
		name, rules string
		stops       []Traffic
	}{
		{"nothing", "table inet fw { }", nil},
		{"accepting", "table inet fw { chain c { type filter hook input priority 0; policy accept; tcp dport 22 drop; }; }", nil},
		{"asleep", "table inet fw { flags dormant; chain c { type filter hook output priority 0; policy drop; }; }", nil},
		{"IPv6", "table ip6 fw { chain c { type filter hook output priority 0; policy drop; }; }", nil},
		{"output", "table inet fw { chain c { type filter hook output priority 0; policy drop; }; }", []Traffic{Forwards}},
		{"output before NAT", "table ip fw { chain c { type filter hook output priority -300; policy drop; }; }", []Traffic{Forwards}},
		{"output but loopback", `table inet fw { chain c { type filter hook output priority 0; policy drop; oif "lo" accept; }; }`, nil},
		{"output but loopback by address", `table inet fw { chain c { type filter hook output priority 0; policy drop; ip saddr 127.0.0.0/8 accept; }; }`, nil},
		{"input", "table inet fw { chain c { type filter hook input priority 0; policy drop; }; }", []Traffic{Forwards}},
		{"workstation", `table inet fw { chain c { type filter hook input priority 0; policy drop; iif "lo" accept; ct state established,related accept; ct state invalid drop; tcp dport 22 accept; }; }`, nil},
		{"input before conntrack", "table ip fw { chain c { type filter hook prerouting priority -300; iifname \"smol*\" drop; }; }", []Traffic{Egress, Forwards}},
		{"forward", "table ip fw { chain c { type filter hook forward priority 0; policy drop; }; }", []Traffic{Egress, Egress}},
		{"forward but answers", "table ip fw { chain c { type filter hook forward priority 0; policy drop; ct state established,related accept; }; }", []Traffic{Egress}},
		{"forward for guests", `table ip fw { chain c { type filter hook forward priority 0; policy drop; ct state established accept; meta iifname "smol*" accept; }; }`, nil},
		{"forward by name in a set", `table ip fw { chain c { type filter hook forward priority 0; policy drop; iifname { "lan0", "smol0" } accept; }; }`, []Traffic{Egress, Egress}},
		{"last rule", `table inet fw { chain c { type filter hook input priority 0; tcp sport 22 accept; counter drop; }; }`, []Traffic{Forwards}},
		{"rejecting", `table inet fw { chain c { type filter hook forward priority 0; reject with icmpx type admin-prohibited; }; }`, []Traffic{Egress, Egress}},
		{"in a chain jumped to", `table inet fw { chain no { iifname "smol*" drop; }; chain c { type filter hook input priority 0; jump no; }; }`, []Traffic{Forwards}},
		{"past a chain jumped to", `table inet fw { chain no { iifname "eth7" drop; }; chain c { type filter hook input priority 0; jump no; }; }`, nil},
		{"postrouting", `table ip fw { chain c { type filter hook postrouting priority 0; oifname "smol0" drop; }; }`, []Traffic{Egress, Forwards}},
	} {
		t.Run(test.name, func(t *testing.T) {
			table := strings.Join(strings.Fields(test.rules)[:3], " ")
			nft(t, test.rules)
			defer nft(t, "delete "+table)
			found := obstacles()
			var stops []Traffic
			for _, o := range found {
				stops = append(stops, o.Stops)
			}
			slices.Sort(stops)
			slices.Sort(test.stops)
			if !slices.Equal(stops, test.stops) {
				t.Errorf("it finds %v, not %v", found, test.stops)
			}
			for _, kind := range []Traffic{Forwards, Egress} {
				named := slices.ContainsFunc(found, func(o Obstacle) bool { return o.Stops == kind && !o.Unsure })
				unsure := slices.ContainsFunc(found, func(o Obstacle) bool { return o.Stops == kind && o.Unsure })
				if !unsure && works(kind) == named {
					t.Errorf("in truth, %s work: %v", kind, !named)
				}
			}
			for _, o := range found {
				if out, err := exec.Command("sh", "-c", o.Advice).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", o.Advice, err, out)
				}
			}
			for _, kind := range stops {
				if !works(kind) {
					t.Errorf("after the advice for it was taken, %s do not work", kind)
				}
			}
			if left := obstacles(); len(left) > 0 {
				t.Errorf("after the advice was taken it still finds %v", left)
			}
		})
	}
}

func TestObstacleReadsWell(t *testing.T) {
	o := Obstacle{Family: "inet", Table: "filter", Chain: "in", Hook: "input", Reason: "policy drop", Stops: Forwards}
	if got, want := fmt.Sprint(o), "table inet filter, chain in (input) stops forwards: policy drop"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	o.Unsure = true
	if got, want := fmt.Sprint(o), "table inet filter, chain in (input) may stop forwards: policy drop"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
