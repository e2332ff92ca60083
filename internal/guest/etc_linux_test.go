package guest

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

func TestWriteEtc(t *testing.T) {
	for name, write := range map[string]etcWriter{"replaced": replaceFile, "overwritten": overwriteFile} {
		t.Run(name, func(t *testing.T) { testWriteEtc(t, write) })
	}
}

func testWriteEtc(t *testing.T, write etcWriter) {
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
		if err := writeEtc(etc, id, write); err != nil {
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
		if err := writeEtc(etc, guestapi.Identity{Hostname: "x"}, write); err != nil {
			t.Fatal(err)
		}
	}
	if got := read("machine-id"); got == machineID || len(got) != 33 {
		t.Errorf("machine-id is not fresh: %q", got)
	}
	if err := writeEtc(filepath.Join(etc, "missing"), id, write); err == nil {
		t.Error("wrote to a directory that is not there")
	}
}

// A small file is written where it is, longer or shorter, and no other file is touched: what is
// none, or is no small one, is replaced.
func TestOverwriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	inode := func() uint64 {
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		return st.Ino
	}
	var before uint64
	for _, c := range []struct {
		content string
		mode    os.FileMode
		stays   bool
	}{
		{"first", 0o644, false}, {"a longer one", 0o644, true}, {"short", 0o644, true}, {"", 0o644, true}, {"again", 0o644, true},
		{"another mode", 0o444, false}, {"the same mode", 0o444, true}, {strings.Repeat("x", inPlaceSize+1), 0o444, false}, {"small again", 0o444, false},
	} {
		must(t, overwriteFile(path, []byte(c.content), c.mode))
		got, err := os.ReadFile(path)
		if err != nil || string(got) != c.content {
			t.Errorf("holds %q, %v, not %q", got, err, c.content)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != c.mode {
			t.Errorf("mode is %v, %v", info.Mode(), err)
		}
		now := inode()
		if (now == before) != c.stays {
			t.Errorf("%.20q is in the file of before: %t", c.content, now == before)
		}
		before = now
	}
	must(t, os.WriteFile(elsewhere, []byte("own"), 0o644))
	must(t, os.Remove(path))
	must(t, os.Symlink(elsewhere, path))
	must(t, overwriteFile(path, []byte("new"), 0o644))
	if got, err := os.ReadFile(elsewhere); err != nil || string(got) != "own" {
		t.Errorf("what a link leads to was written to: %q, %v", got, err)
	}
	must(t, os.Remove(path))
	must(t, os.Mkdir(path, 0o755))
	if err := overwriteFile(path, []byte("x"), 0o644); err == nil {
		t.Error("a directory was replaced")
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
			if bytes.HasSuffix(line, []byte(guestapi.HostsMark)) {
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
		if !strings.Contains(string(once), "127.0.1.1\tname "+guestapi.HostsMark+"\n") {
			t.Fatalf("the name is missing: %q", once)
		}
	})
}
