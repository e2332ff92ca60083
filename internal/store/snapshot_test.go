package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func draft(t *testing.T, s *Store) *Draft {
	t.Helper()
	d, err := s.NewDraft(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Discard(); err != nil {
			t.Error(err)
		}
	})
	if !s.IsDraft(d.Dir) || s.IsDraft(s.vms()) || s.IsDraft(d.Dir+"/..") {
		t.Errorf("%s is not told from others", d.Dir)
	}
	return d
}

func describe(t *testing.T, d *Draft, snap Snapshot) {
	t.Helper()
	if err := WriteSnapshot(d.Dir, snap); err != nil {
		t.Fatal(err)
	}
}

func TestSnapshots(t *testing.T) {
	s := newStore(t)
	if all, err := s.Snapshots(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("at first: %v, %v", all, err)
	}
	d := draft(t, s)
	if copies, err := s.Copies(t.Context()); err != nil || len(copies) != 0 {
		t.Errorf("a draft of which nothing is known: %v, %v", copies, err)
	}
	describe(t, d, Snapshot{VM: "web", Design: Design{Image: "debian", MemoryMiB: 256}})
	if copies, err := s.Copies(t.Context()); err != nil || len(copies) != 1 || copies[0].Image != "debian" {
		t.Errorf("a draft: %v, %v", copies, err)
	}
	if _, err := d.Keep(t.Context(), "No Name"); !errors.Is(err, ErrInvalidName) {
		t.Error(err)
	}
	if snap, err := d.Keep(t.Context(), "first"); err != nil || snap.Name != "first" || snap.VM != "web" {
		t.Errorf("%+v, %v", snap, err)
	}
	second := draft(t, s)
	describe(t, second, Snapshot{VM: "db"})
	if _, err := second.Keep(t.Context(), "first"); !errors.Is(err, ErrSnapshotExists) {
		t.Error(err)
	}
	if snap, err := s.Snapshot(t.Context(), "first"); err != nil || snap.VM != "web" || snap.MemoryMiB != 256 {
		t.Errorf("%+v, %v", snap, err)
	}
	if _, err := s.Snapshot(t.Context(), "none"); !errors.Is(err, ErrSnapshotNotFound) {
		t.Error(err)
	}
	// One that is damaged is seen, and can be removed.
	if err := os.MkdirAll(filepath.Join(s.snapshots(), "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	all, err := s.Snapshots(t.Context())
	if err != nil || len(all) != 2 || !errors.Is(all[0].Err, ErrDamaged) || all[1].Err != nil {
		t.Errorf("%+v, %v", all, err)
	}
	for _, name := range []string{"first", "empty"} {
		if err := s.RemoveSnapshot(t.Context(), name); err != nil {
			t.Error(err)
		}
		if err := s.RemoveSnapshot(t.Context(), name); !errors.Is(err, ErrSnapshotNotFound) {
			t.Error(err)
		}
	}
}

// A draft is there until its maker has ended.
func TestReapDrafts(t *testing.T) {
	s := newStore(t)
	mine, dead := draft(t, s), draft(t, s)
	if err := dead.lock.Close(); err != nil { // as the end of the process does
		t.Fatal(err)
	}
	dead.lock = nil
	if err := os.MkdirAll(filepath.Join(s.snapshots(), removedPrefix+"1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reap(t.Context(), cleanNothing); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(s.snapshots())
	if err != nil || len(left) != 1 || left[0].Name() != filepath.Base(mine.Dir) {
		t.Errorf("left are %v, %v", left, err)
	}
}

func TestSnapshotName(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	for _, vm := range []string{"web", strings.Repeat("x", maxNameLength)} {
		name := SnapshotName(vm, at)
		if err := CheckName(name); err != nil || !strings.HasSuffix(name, "-20260102-020405") {
			t.Errorf("%s: %s, %v", vm, name, err)
		}
	}
}

// Tidy removes what the record does not name, and nothing else.
func TestTidy(t *testing.T) {
	s := newStore(t)
	claim := create(t, s, Record{Name: "web"})
	disk, kept := NewDiskFile(), NewSavedDir()
	if err := claim.Update(func(rec *Record) { rec.Disk, rec.Saved = disk, kept }); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{kept, NewSavedDir()} {
		if err := os.Mkdir(filepath.Join(claim.Dir(), name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{disk, NewDiskFile(), defaultDisk, "note"} {
		if err := os.WriteFile(filepath.Join(claim.Dir(), name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	disks, err := s.Disks()
	if err != nil || len(disks) != 3 {
		t.Errorf("disks %v, %v", disks, err)
	}
	if err := claim.Tidy(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{kept, disk, "note", recordFile} {
		if _, err := os.Stat(filepath.Join(claim.Dir(), name)); err != nil {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(claim.Dir())
	if err != nil || len(entries) != 5 { // and the lock
		t.Errorf("left are %v, %v", entries, err)
	}
}
