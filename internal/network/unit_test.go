package network

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"

	"github.com/smolvm/smolvm/internal/forward"
)

func isMapped(err error) bool { return errors.Is(err, forward.ErrMapped) }

func TestSlot(t *testing.T) {
	pool := DefaultPool()
	for _, test := range []struct {
		slot        slot
		host, guest string
		ok          bool
	}{
		{0, "198.18.0.0", "198.18.0.1", true},
		{1, "198.18.0.2", "198.18.0.3", true},
		{128, "198.18.1.0", "198.18.1.1", true},
		{32767, "198.18.255.254", "198.18.255.255", true},
		{32768, "", "", false},
		{-1, "", "", false},
	} {
		host, guest, ok := test.slot.addresses(pool)
		if ok != test.ok || (ok && (host.String() != test.host || guest.String() != test.guest)) {
			t.Errorf("slot %d has %s, %s, %v", test.slot, host, guest, ok)
		}
	}
	for _, name := range []string{"smol", "smol01", "smol-1", "smolx", "eth0", "smol1x", "smol99999999999"} {
		if n, ok := slotOf(name); ok {
			t.Errorf("%s is slot %d", name, n)
		}
	}
	if n, ok := slotOf("smol42"); !ok || n != 42 {
		t.Errorf("smol42 is slot %d, %v", n, ok)
	}
}

func FuzzSlotOf(f *testing.F) {
	f.Add("smol0")
	f.Add("smol")
	f.Fuzz(func(t *testing.T, name string) {
		n, ok := slotOf(name)
		if !ok {
			return
		}
		if host, guest, ok := n.addresses(DefaultPool()); ok && (!DefaultPool().Contains(host) || guest != host.Next()) {
			t.Errorf("%s has %s and %s", name, host, guest)
		}
	})
}

func FuzzDecodeMapping(f *testing.F) {
	f.Add([]byte{6, 0, 0, 0, 0x1f, 0x90, 0, 0}, []byte{198, 18, 0, 1, 0, 80, 0, 0})
	f.Add([]byte{}, []byte{1})
	f.Fuzz(func(t *testing.T, key, val []byte) {
		m, ok := decodeMapping(nftables.SetElement{Key: key, Val: val})
		if !ok {
			return
		}
		e, err := encodeMapping(m)
		if err != nil {
			t.Fatal(err)
		}
		if again, ok := decodeMapping(e); !ok || again != m {
			t.Errorf("%v became %v", m, again)
		}
	})
}

func TestResolver(t *testing.T) {
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	addrs := func(list ...string) (out []netip.Addr) {
		for _, a := range list {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	uplinks := file("nameserver 192.0.2.53\nsearch corp.example\n")
	for _, test := range []struct {
		name, text string
		want       Resolver
	}{
		{"real", "# x\nnameserver 192.0.2.1\nnameserver 192.0.2.2 # two\nnameserver 192.0.2.1\nsearch a.example. b.example # c\n",
			Resolver{addrs("192.0.2.1", "192.0.2.2"), []string{"a.example", "b.example"}}},
		{"stub", "nameserver 127.0.0.53\noptions edns0\nsearch .\n", Resolver{addrs("192.0.2.53"), []string{"corp.example"}}},
		{"stub with search", "nameserver 127.0.0.53\nsearch lan\n", Resolver{addrs("192.0.2.53"), []string{"lan"}}},
		{"not for guests", "nameserver ::1\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\nnameserver 169.254.169.254\nnameserver 0.0.0.0\n",
			Resolver{addrs("192.0.2.53"), []string{"corp.example"}}},
		{"mapped", "nameserver ::ffff:192.0.2.9\ndomain old.example\n", Resolver{addrs("192.0.2.9"), []string{"old.example"}}},
		{"nonsense", "nameserver\nnameserver x\n\x00\n", Resolver{addrs("192.0.2.53"), []string{"corp.example"}}},
	} {
		got, err := readResolver(file(test.text), uplinks)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if diff := cmp.Diff(test.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s: %s", test.name, diff)
		}
	}
	if got, err := readResolver(filepath.Join(t.TempDir(), "none")); err != nil || len(got.Nameservers) != 0 {
		t.Errorf("no file: %v, %v", got, err)
	}
}

func FuzzParseResolver(f *testing.F) {
	f.Add("nameserver 192.0.2.1\nsearch a b\n")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseResolver(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, a := range r.Nameservers {
			if !a.IsValid() || a.Is4In6() {
				t.Errorf("bad name server %v", a)
			}
		}
		for _, s := range r.Search {
			if s == "" || strings.ContainsAny(s, " \t\n") {
				t.Errorf("bad search domain %q", s)
			}
		}
	})
}

func TestBrokenStateIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadState(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}
