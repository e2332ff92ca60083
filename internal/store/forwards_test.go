package store

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestForwards(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Create(t.Context(), Record{Name: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Forwards(); err != nil || got != nil {
		t.Errorf("a new VM has %v, %v", got, err)
	}
	want := []Forward{{Protocol: "udp", GuestPort: 53, HostPort: 5354, Wanted: 5353, Strict: true, Transport: "nftables"}, {Protocol: "tcp", GuestPort: 80, HostPort: 8080}}
	for _, f := range want {
		if err := c.UpdateForwards(func(fs []Forward) []Forward { return append(fs, f) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Release(); err != nil {
		t.Fatal(err)
	}
	if err := c.UpdateForwards(func(fs []Forward) []Forward { return nil }); err == nil {
		t.Error("who gave the VM up still changes its forwards")
	}
	if c, err = s.Claim(t.Context(), "vm"); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Forwards(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	// A file cut in half names itself and leaves the rest of the VM alone.
	path := filepath.Join(c.Dir(), forwardsFile)
	if err := os.Truncate(path, 20); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Forwards(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("of half a file: %v", err)
	}
	if err := c.UpdateForwards(func([]Forward) []Forward { return nil }); err == nil {
		t.Error("what could not be read was overwritten")
	}
	if _, err := s.Get(t.Context(), "vm"); err != nil {
		t.Error(err)
	}
}
