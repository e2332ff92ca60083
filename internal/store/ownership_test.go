package store

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// dup is what a child that inherits the file would have.
func dup(t *testing.T, c *Claim) *os.File {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.ExtraFiles = []*os.File{c.Lock()}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	f, err := os.OpenFile(filepath.Join(c.Dir(), lockFile), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestHandOver: the ownership passes from one process to the other with no moment between in
// which nobody has it.
func TestHandOver(t *testing.T) {
	s := newStore(t)
	c := create(t, s, Record{Name: "web", Ephemeral: true})
	stranger := dup(t, c)
	if err := c.Release(); err != nil {
		t.Fatal(err)
	}
	// The child has it now.
	if reaped, err := s.Reap(t.Context(), cleanNothing); err != nil || len(reaped.Crashed) != 0 {
		t.Fatalf("Reap of a VM that was handed over: %+v, %v", reaped, err)
	}
	if _, err := s.Claim(t.Context(), "web"); !errors.Is(err, ErrInUse) {
		t.Errorf("Claim: %v, want ErrInUse", err)
	}
	if _, err := s.Inherit(t.Context(), "web", stranger); err == nil {
		t.Error("somebody inherits by a file that was opened anew")
	}
}

func TestInherit(t *testing.T) {
	s := newStore(t)
	c := create(t, s, Record{Name: "web"})
	other := create(t, s, Record{Name: "other"})
	if _, err := s.Inherit(t.Context(), "web", other.Lock()); err == nil {
		t.Error("inherited by another VM's lock")
	}
	again, err := s.Inherit(t.Context(), "web", c.Lock())
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Update(func(r *Record) { r.MemoryMiB = 7 }); err != nil {
		t.Error(err)
	}
	if err := again.Release(); err != nil {
		t.Error(err)
	}
}

// TestOrphan: a VM whose monitor lives on without an owner is neither reaped nor taken for
// stopped, unless it was to die with its owner.
func TestOrphan(t *testing.T) {
	s := newStore(t)
	locks := make(map[string]*os.File)
	for name, detached := range map[string]bool{"detached": true, "attached": false} {
		c := create(t, s, Record{Name: name, Ephemeral: true, Run: &Run{Detached: detached}})
		lock, err := c.RunLock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		locks[name] = lock
		if _, err := c.RunLock(t.Context()); !errors.Is(err, ErrInUse) {
			t.Errorf("a second run: %v, want ErrInUse", err)
		}
		if alive, err := c.Alive(t.Context()); !alive || err != nil {
			t.Errorf("alive: %v, %v", alive, err)
		}
		if err := c.Release(); err != nil {
			t.Fatal(err)
		}
	}
	reaped, err := s.Reap(t.Context(), cleanNothing)
	if diff := cmp.Diff([]string{"detached"}, reaped.Orphans); err != nil || diff != "" {
		t.Errorf("orphans: %v %s", err, diff)
	}
	if len(reaped.Crashed) != 1 || reaped.Crashed[0].Name != "attached" {
		t.Errorf("crashed: %+v", reaped.Crashed)
	}
	if entry, err := s.Get(t.Context(), "detached"); err != nil || !entry.Alive || entry.Owned {
		t.Errorf("entry: %+v, %v", entry, err)
	}
	locks["detached"].Close()
	if reaped, err := s.Reap(t.Context(), cleanNothing); err != nil || len(reaped.Orphans) != 0 || len(reaped.Crashed) != 1 {
		t.Errorf("after its end: %+v, %v", reaped, err)
	}
	wantEmpty(t, s)
}

func TestRename(t *testing.T) {
	s := newStore(t)
	c := create(t, s, Record{Name: "old", Design: Design{MemoryMiB: 9}})
	create(t, s, Record{Name: "taken"})
	if err := c.Rename(t.Context(), "taken"); !errors.Is(err, ErrExists) {
		t.Errorf("to a name that is taken: %v", err)
	}
	if err := c.Rename(t.Context(), "No Name"); !errors.Is(err, ErrInvalidName) {
		t.Errorf("to what is no name: %v", err)
	}
	if err := c.Rename(t.Context(), "new"); err != nil {
		t.Fatal(err)
	}
	if err := c.Update(func(r *Record) { r.CPUs = 3 }); err != nil {
		t.Fatal(err)
	}
	entry, err := s.Get(t.Context(), "new")
	if err != nil || entry.Name != "new" || entry.MemoryMiB != 9 || entry.CPUs != 3 || !entry.Owned {
		t.Errorf("renamed: %+v, %v", entry, err)
	}
	if _, err := s.Get(t.Context(), "old"); !errors.Is(err, ErrNotFound) {
		t.Errorf("under the old name: %v", err)
	}
}

func TestDiscard(t *testing.T) {
	s := newStore(t)
	c := create(t, s, Record{Name: "web"})
	if err := s.Discard(t.Context(), "web"); err == nil {
		t.Error("a VM was discarded whose record can be read")
	}
	if err := os.WriteFile(filepath.Join(c.Dir(), recordFile), []byte(`{"version": 2, "na`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Discard(t.Context(), "web"); !errors.Is(err, ErrInUse) {
		t.Errorf("while it is owned: %v", err)
	}
	c.Release()
	if _, err := s.Claim(t.Context(), "web"); !errors.Is(err, ErrDamaged) {
		t.Errorf("claim: %v, want ErrDamaged", err)
	}
	if err := s.Discard(t.Context(), "web"); err != nil {
		t.Error(err)
	}
	wantEmpty(t, s)
}

// TestMigrateFrom1 reads what version 1 wrote.
func TestMigrateFrom1(t *testing.T) {
	const old = `{
  "version": 1, "name": "web", "created": "2026-11-01T10:00:00Z", "image": "debian", "image_id": "0123", "memory_mib": 512,
  "cpus": 1, "disk_bytes": 8589934592, "env": ["A=1"], "network": "auto", "ephemeral": false, "host_key": "a2V5",
  "started": true, "running": true, "interface": {"name": "smol3", "index": 12}, "owner_pid": 77
}`
	created := time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)
	got, err := parseRecord([]byte(old))
	want := Record{
		Version: recordVersion, Name: "web", Created: created, Design: Design{
			Image: "debian", ImageID: "0123", MemoryMiB: 512, CPUs: 1, DiskSize: 8589934592, Env: []string{"A=1"}, Network: "auto",
		}, HostKey: []byte("key"), Started: created,
		Run: &Run{Network: "auto", Interface: &Interface{"smol3", 12}}, OwnerPID: 77,
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	// It is found, reaped and written anew.
	s := newStore(t)
	dir := s.Dir("web")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, recordFile), []byte(old), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reap(t.Context(), cleanNothing); err != nil {
		t.Fatal(err)
	}
	entry, err := s.Get(t.Context(), "web")
	if err != nil || entry.Version != recordVersion || entry.Run != nil || !entry.Started.Equal(created) {
		t.Errorf("after Reap: %+v, %v", entry, err)
	}
}

func cleanNothing([]Record) error { return nil }

// TestReapAgain: what could not be cleaned up is found again.
func TestReapAgain(t *testing.T) {
	s := newStore(t)
	create(t, s, Record{Name: "web", Ephemeral: true, Run: &Run{}}).Release()
	failure := errors.New("no permission")
	for range 2 {
		called := 0
		_, err := s.Reap(t.Context(), func(crashed []Record) error {
			called += len(crashed)
			return failure
		})
		if !errors.Is(err, failure) || called != 1 {
			t.Fatalf("got %v after %d VMs", err, called)
		}
	}
	if _, err := s.Reap(t.Context(), cleanNothing); err != nil {
		t.Error(err)
	}
	wantEmpty(t, s)
	if _, err := s.Reap(t.Context(), func([]Record) error { return failure }); err != nil {
		t.Errorf("with nothing to clean: %v", err)
	}
}

// TestOrderlyEndIsNoCrash has owners come and go while others look: none of them looks as if it
// had died, and the next one finds what the last one wrote.
func TestOrderlyEndIsNoCrash(t *testing.T) {
	s := newStore(t)
	c := create(t, s, Record{Name: "web"})
	ended := make(chan error, 1)
	go func() {
		for range 100 {
			err := errors.Join(
				c.Update(func(r *Record) { r.Run = &Run{} }),
				c.Update(func(r *Record) { r.Run = nil; r.MemoryMiB++ }),
				c.Release(),
			)
			if err == nil {
				c, err = s.Claim(t.Context(), "web")
			}
			if err != nil {
				ended <- err
				return
			}
		}
		ended <- c.Release()
	}()
	for {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatal(err)
			}
			if entry, err := s.Get(t.Context(), "web"); err != nil || entry.MemoryMiB != 100 {
				t.Errorf("there were %d of 100 owners, %v", entry.MemoryMiB, err)
			}
			return
		default:
		}
		reaped, err := s.Reap(t.Context(), cleanNothing)
		if err != nil || len(reaped.Crashed) > 0 {
			t.Fatalf("reaped %+v, %v", reaped, err)
		}
	}
}
