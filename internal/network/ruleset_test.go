package network

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables/userdata"

	"github.com/smolvm/smolvm/internal/forward"
)

// ruleSetOptions is one of all combinations of what the rule set depends on.
type ruleSetOptions struct {
	name     string
	pool     netip.Prefix
	ipv6     bool
	borrowed []string
	forwards []forward.Mapping
}

func allRuleSets() []ruleSetOptions {
	var all []ruleSetOptions
	pools := map[string]netip.Prefix{"pool16": DefaultPool(), "pool20": netip.MustParsePrefix("10.20.16.0/20")}
	for poolName, pool := range pools {
		for v6Name, ipv6 := range map[string]bool{"ipv4": false, "ipv6": true} {
			for borrowedName, borrowed := range map[string][]string{"own": nil, "borrowed": {"eth0", "wlan0"}} {
				guest := netip.AddrPortFrom(pool.Addr().Next(), 80)
				for forwardsName, forwards := range map[string][]forward.Mapping{
					"none": nil,
					"two":  {{Protocol: forward.TCP, HostPort: 8000, Guest: guest}, {Protocol: forward.UDP, HostPort: 5353, Guest: guest}},
				} {
					name := strings.Join([]string{poolName, v6Name, borrowedName, forwardsName}, "-")
					all = append(all, ruleSetOptions{name, pool, ipv6, borrowed, forwards})
				}
			}
		}
	}
	return all
}

// TestRuleSets compares what the nft program shows of each rule set with a file.
// UPDATE_GOLDEN=1 writes the files.
func TestRuleSets(t *testing.T) {
	for _, o := range allRuleSets() {
		t.Run(o.name, func(t *testing.T) {
			h := testHost(t)
			defer func() {
				if err := h.sockets.change(removeTables); err != nil {
					t.Error(err)
				}
			}()
			h.wanted.add(o.forwards)
			want := newRuleset(o.pool, o.ipv6)
			if err := h.ensureRuleset(want, o.borrowed); err != nil {
				t.Fatal(err)
			}
			before := generation(t)
			if err := h.ensureRuleset(want, o.borrowed); err != nil {
				t.Fatal(err)
			}
			if generation(t) != before {
				t.Error("what was written is not recognised")
			}
			compareGolden(t, filepath.Join("testdata", "rulesets", o.name+".nft"), run(t, "nft", "list", "ruleset"))
		})
	}
}

func compareGolden(t *testing.T, golden, got string) {
	t.Helper()
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := errors.Join(os.MkdirAll(filepath.Dir(golden), 0o755), os.WriteFile(golden, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("rules are not those of %s:\n%s", golden, got)
	}
}

func TestNoGoldenFileIsStale(t *testing.T) {
	expected := make(map[string]bool)
	for _, o := range allRuleSets() {
		expected[o.name+".nft"] = true
	}
	files, err := os.ReadDir(filepath.Join("testdata", "rulesets"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !expected[f.Name()] {
			t.Errorf("%s is of no rule set", f.Name())
		}
	}
}

func TestEverythingHasAComment(t *testing.T) {
	for _, o := range allRuleSets() {
		rs := newRuleset(o.pool, o.ipv6)
		for _, s := range rs.sets {
			if s.Comment == "" {
				t.Errorf("%s: %s has no comment", o.name, s.Name)
			}
		}
		if len(rs.rules) == 0 {
			t.Errorf("%s: no rules", o.name)
		}
		for i, r := range rs.rules {
			if comment, ok := userdata.GetString(r.UserData, userdata.TypeComment); !ok || comment == "" {
				t.Errorf("%s: rule %d, of chain %s, has no comment", o.name, i, r.Chain.Name)
			}
		}
	}
}
