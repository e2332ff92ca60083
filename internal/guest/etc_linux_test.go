package guest

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smolvm/smolvm/internal/guestapi"
)

func TestWriteEtc(t *testing.T) {
	etc := t.TempDir()
	read := func(name string) string {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(etc, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if err := os.Symlink("/run/systemd/resolve/stub-resolv.conf", filepath.Join(etc, "resolv.conf")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(etc, "hosts"), []byte("127.0.0.1 localhost\n192.0.2.1 mine # comment"), 0o644); err != nil {
		t.Fatal(err)
	}
	id := guestapi.Identity{Hostname: "one", Network: &guestapi.Network{
		Nameservers: []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")}, Search: []string{"a.test", "b.test"},
	}}
	machineID := ""
	for _, id.Hostname = range []string{"one", "one", "two"} {
		if err := writeEtc(etc, id); err != nil {
			t.Fatal(err)
		}
		if got, want := read("hosts"), "127.0.0.1 localhost\n192.0.2.1 mine # comment\n127.0.1.1\t"+id.Hostname+" # smolvm\n"; got != want {
			t.Errorf("hosts: %q, want %q", got, want)
		}
		if got := read("hostname"); got != id.Hostname+"\n" {
			t.Errorf("hostname: %q", got)
		}
		if got := read("resolv.conf"); got != "search a.test b.test\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n" {
			t.Errorf("resolv.conf: %q", got)
		}
		got := read("machine-id")
		if len(got) != 33 || machineID != "" && got != machineID {
			t.Errorf("machine-id: %q, before %q", got, machineID)
		}
		machineID = got
	}
	files, err := os.ReadDir(etc)
	if err != nil || len(files) != 4 {
		t.Errorf("left behind: %v, %v", files, err)
	}
	if err := os.WriteFile(filepath.Join(etc, "machine-id"), []byte("uninitialized\n"), 0o644); err == nil {
		if err := writeEtc(etc, guestapi.Identity{Hostname: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	if got := read("machine-id"); got == machineID || len(got) != 33 {
		t.Errorf("machine-id is not fresh: %q", got)
	}
	if err := writeEtc(filepath.Join(etc, "missing"), id); err == nil {
		t.Error("wrote to a directory that is not there")
	}
}

func FuzzHostsFile(f *testing.F) {
	f.Add([]byte("127.0.0.1 localhost\n"))
	f.Add([]byte("::1 localhost # smolvm\n# localhost\n10.0.0.1 a b\n"))
	f.Add([]byte("\n\n\r\nlocalhost"))
	f.Fuzz(func(t *testing.T, old []byte) {
		once := hostsFile(old, "name")
		if again := hostsFile(once, "name"); !bytes.Equal(once, again) {
			t.Fatalf("not the same again: %q, %q", once, again)
		}
		if renamed := hostsFile(hostsFile(old, "other"), "name"); !bytes.Equal(once, renamed) {
			t.Fatalf("the old name left a trace: %q, %q", once, renamed)
		}
		kept := bytes.Split(once, []byte("\n"))
		for line := range bytes.Lines(old) {
			line = bytes.TrimRight(line, "\n")
			if bytes.HasSuffix(line, []byte(ours)) {
				continue
			}
			found := false
			for _, k := range kept {
				found = found || bytes.Equal(k, line)
			}
			if !found {
				t.Fatalf("the user's line %q is gone", line)
			}
		}
		if !strings.Contains(string(once), "127.0.1.1\tname "+ours+"\n") {
			t.Fatalf("the name is missing: %q", once)
		}
	})
}
