package guestlink

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"testing"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi"
)

func TestSFTP(t *testing.T) {
	n := startNetwork(t)
	client := n.client(t)
	c, err := sftp.NewClient(client)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if home, err := c.Getwd(); err != nil || home != "/root" {
		t.Errorf("begins in %q, %v", home, err)
	}
	dir := t.TempDir()
	var data bytes.Buffer
	if _, err := io.Copy(&data, io.LimitReader(noise(), 4<<20)); err != nil {
		t.Fatal(err)
	}
	f, err := c.Create(dir + "/f")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadFrom(bytes.NewReader(data.Bytes())); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), c.Chmod(dir+"/f", 0o640), c.Mkdir(dir+"/d"), c.PosixRename(dir+"/f", dir+"/d/g"), c.Symlink("d/g", dir+"/l")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(dir + "/l"); err != nil || !bytes.Equal(got, data.Bytes()) {
		t.Errorf("%d bytes arrived, %v", len(got), err)
	}
	if info, err := c.Stat(dir + "/d/g"); err != nil || info.Mode() != 0o640 || info.Size() != 4<<20 {
		t.Errorf("got %v, %v", info, err)
	}
	if f, err = c.Open(dir + "/l"); err != nil {
		t.Fatal(err)
	}
	var back bytes.Buffer
	if _, err := f.WriteTo(&back); err != nil || !bytes.Equal(back.Bytes(), data.Bytes()) {
		t.Errorf("%d bytes came back, %v", back.Len(), err)
	}
	f.Close()
	if _, err := c.Open(dir + "/no"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	// It is what a session is for, and its end is a good one.
	channel, requests, err := client.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer channel.Close()
	subsystem := ssh.Marshal(struct{ Name string }{"sftp"})
	for _, want := range []bool{true, false} {
		if ok, err := channel.SendRequest("subsystem", true, subsystem); ok != want || err != nil {
			t.Errorf("started: %v, %v", ok, err)
		}
	}
	if err := channel.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for req := range requests {
		if status, ok := exitStatus(req); !ok || status != (guestapi.ExitStatus{}) {
			t.Errorf("%s: %+v", req.Type, status)
		}
	}
}

// A new environment is that of all that begins later, on whatever way.
func TestEnvironmentChanges(t *testing.T) {
	n := startNetwork(t)
	c := n.client(t)
	both := func(want string) {
		t.Helper()
		if out, err := newSession(t, c).Output("echo $COLOR$SIZE"); err != nil || string(out) != want {
			t.Errorf("session: %q, %v", out, err)
		}
		if r := run(t, n.link, sh("echo $COLOR$SIZE"), nil); r.stdout.String() != want {
			t.Errorf("command: %q", &r.stdout)
		}
	}
	both("red\n")
	early := newSession(t, c)
	if err := n.link.Configure(t.Context(), guestapi.Identity{Env: []string{"COLOR=blue", "SIZE=big"}}); err != nil {
		t.Fatal(err)
	}
	both("bluebig\n")
	if out, err := early.Output("echo $COLOR"); err != nil || string(out) != "blue\n" {
		t.Errorf("a session that had begun, and not its command: %q, %v", out, err)
	}
}
