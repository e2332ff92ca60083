package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestMain lets a test run this binary again as another owner, which claims the
// VM it is told and holds it until it is killed.
func TestMain(m *testing.M) {
	if name := os.Getenv("STORE_TEST_HOLD"); name != "" {
		if err := hold(os.Getenv("STORE_TEST_ROOT"), name); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func hold(root, name string) error {
	s, err := Open(root)
	if err != nil {
		return err
	}
	c, err := s.Create(context.Background(), Record{Name: name, Ephemeral: true})
	if err != nil {
		return err
	}
	fmt.Println("held")
	// The runtime ends a program in which everything waits for something in it.
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, c.Release())
}

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t *testing.T, s *Store, rec Record) *Claim {
	t.Helper()
	c, err := s.Create(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Release() })
	return c
}

func TestCreateClaimRemove(t *testing.T) {
	s := newStore(t)
	c := create(t, s, Record{Name: "web", Design: Design{MemoryMiB: 512}})

	if _, err := s.Create(t.Context(), Record{Name: "web"}); !errors.Is(err, ErrExists) {
		t.Errorf("second Create: got %v, want ErrExists", err)
	}
	if _, err := s.Claim(t.Context(), "web"); !errors.Is(err, ErrInUse) {
		t.Errorf("Claim of an owned VM: got %v, want ErrInUse", err)
	}
	if err := c.Update(func(r *Record) { r.Run = &Run{Network: "nat"} }); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Release(), c.Release()); err != nil {
		t.Fatal(err)
	}
	if err := c.Update(func(*Record) {}); err == nil {
		t.Error("Update after Release succeeded")
	}

	again, err := s.Claim(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	if rec := again.Record(); rec.Run == nil || rec.MemoryMiB != 512 || rec.OwnerPID != os.Getpid() {
		t.Errorf("record read back: %+v", rec)
	}
	if err := errors.Join(again.Remove(t.Context()), again.Remove(t.Context())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Claim(t.Context(), "web"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Claim of a removed VM: got %v, want ErrNotFound", err)
	}
	wantEmpty(t, s)
}

func TestListSurvivesDamage(t *testing.T) {
	s := newStore(t)
	create(t, s, Record{Name: "whole"})
	broken := create(t, s, Record{Name: "broken"})
	path := filepath.Join(broken.Dir(), recordFile)
	if err := os.Truncate(path, 20); err != nil {
		t.Fatal(err)
	}
	entries, err := s.List(t.Context())
	if err != nil || len(entries) != 2 {
		t.Fatalf("List: %v, %v", entries, err)
	}
	if e := entries[0]; e.Name != "broken" || e.Err == nil || !strings.Contains(e.Err.Error(), path) {
		t.Errorf("broken entry does not name its file: %+v", e)
	}
	if e := entries[1]; e.Name != "whole" || e.Err != nil || !e.Owned {
		t.Errorf("whole entry: %+v", e)
	}
}

func TestReapRemovesWhatADeadOwnerLeft(t *testing.T) {
	s := newStore(t)
	kept := create(t, s, Record{Name: "kept"})
	kept.Release()
	crashed := create(t, s, Record{Name: "crashed", Run: &Run{Interface: &Interface{"smol7", 7}}})
	crashed.Release()
	create(t, s, Record{Name: "alive", Ephemeral: true})
	for _, debris := range []string{nascentPrefix + "1", removedPrefix + "1"} {
		if err := os.MkdirAll(filepath.Join(s.vms(), debris, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}

	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), "STORE_TEST_HOLD=doomed", "STORE_TEST_ROOT="+s.Root())
	if _, err := owner.StdinPipe(); err != nil { // open until the owner is waited for
		t.Fatal(err)
	}
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "held\n" {
		t.Fatalf("owner said %q", line)
	}

	// While its owner lives the VM stays.
	reaped, err := s.Reap(t.Context(), cleanNothing)
	if err != nil || len(reaped.Crashed) != 1 || reaped.Crashed[0].Name != "crashed" || reaped.Crashed[0].Run.Interface.Name != "smol7" {
		t.Fatalf("Reap beside living owners: %+v, %v", reaped, err)
	}
	if entry, err := s.Get(t.Context(), "crashed"); err != nil || entry.Run != nil {
		t.Errorf("crashed VM after Reap: %+v, %v", entry, err)
	}
	if _, err := s.Claim(t.Context(), "doomed"); !errors.Is(err, ErrInUse) {
		t.Fatalf("Claim: got %v, want ErrInUse", err)
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	reaped, err = s.Reap(t.Context(), cleanNothing)
	if err != nil || len(reaped.Crashed) != 1 || reaped.Crashed[0].Name != "doomed" {
		t.Fatalf("Reap after the owner's death: %+v, %v", reaped, err)
	}
	files, _ := os.ReadDir(s.vms())
	var left []string
	for _, f := range files {
		left = append(left, f.Name())
	}
	if want := []string{".lock", "alive", "crashed", "kept"}; !slices.Equal(left, want) {
		t.Errorf("left behind: %v, want %v", left, want)
	}
}

func TestOneCreatorWins(t *testing.T) {
	s := newStore(t)
	var wg sync.WaitGroup
	claims := make([]*Claim, 16)
	for i := range claims {
		wg.Go(func() {
			c, err := s.Create(t.Context(), Record{Name: "same"})
			if err != nil && !errors.Is(err, ErrExists) {
				t.Error(err)
			}
			claims[i] = c
		})
	}
	wg.Wait()
	var winners int
	for _, c := range claims {
		if c != nil {
			winners++
			if err := c.Remove(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	if winners != 1 {
		t.Errorf("%d creators won", winners)
	}
	wantEmpty(t, s)
}

func TestNames(t *testing.T) {
	for _, good := range []string{"a", "0", "web-1", strings.Repeat("a", 63)} {
		if err := CheckName(good); err != nil {
			t.Errorf("CheckName(%q): %v", good, err)
		}
	}
	for _, bad := range []string{"", "-a", "a-", "A", "a.b", "a/b", "..", "ä", "a b", strings.Repeat("a", 64)} {
		if err := CheckName(bad); !errors.Is(err, ErrInvalidName) {
			t.Errorf("CheckName(%q): %v", bad, err)
		}
	}
	for range 1000 {
		if name := GenerateName(); CheckName(name) != nil {
			t.Fatalf("generated %q", name)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"name":"web","forwards":[{"host_port":1,"guest_port":2}]}`))
	f.Add([]byte(`{"version":2,"name":"web"}`))
	f.Add([]byte(`{"version":1,"name":"../web"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := parseRecord(data)
		if err == nil && CheckName(rec.Name) != nil {
			t.Errorf("accepted the name %q", rec.Name)
		}
	})
}

func wantEmpty(t *testing.T, s *Store) {
	t.Helper()
	files, err := os.ReadDir(s.vms())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() != ".lock" {
			t.Errorf("left behind: %s", f.Name())
		}
	}
}
