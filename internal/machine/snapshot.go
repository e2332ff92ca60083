package machine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/smolvm/smolvm/internal/diskusage"
	"github.com/smolvm/smolvm/internal/saved"
	"github.com/smolvm/smolvm/internal/store"
)

// Snapshot is a copy of a VM that is kept, from which new VMs can be made, or the VM be put back.
type Snapshot struct {
	Name    string    `json:"name"`
	VM      string    `json:"vm"` // whose copy it is
	Created time.Time `json:"created"`
	// Running tells that it has the VM's memory: what is made from it goes on where the VM was.
	// Else it boots from the disk.
	Running   bool   `json:"running"`
	Image     string `json:"image"`
	MemoryMiB int    `json:"memory_mib"`
	CPUs      int    `json:"cpus"`
	DiskSize  int64  `json:"disk_bytes"` // what guests see
	// Size is what it takes of the host's disk, but for what it shares with the VM's disk.
	Size int64  `json:"bytes"`
	Dir  string `json:"dir"`
	// Err says why the snapshot cannot be read. Then only Name and Dir are set.
	Err error `json:"-"`
}

func snapshotOf(s store.Snapshot) Snapshot {
	if s.Err != nil {
		return Snapshot{Name: s.Name, Dir: s.Dir, Err: s.Err}
	}
	size, _ := diskusage.Of(s.Dir)
	return Snapshot{
		Name: s.Name, VM: s.VM, Created: s.Created, Running: s.Running, Image: s.Image, MemoryMiB: s.MemoryMiB,
		CPUs: s.CPUs, DiskSize: s.DiskSize, Size: size, Dir: s.Dir,
	}
}

// Snapshots returns all snapshots by name.
func (h *Host) Snapshots(ctx context.Context) ([]Snapshot, error) {
	found, err := h.store.Snapshots(ctx)
	all := make([]Snapshot, len(found))
	for i, s := range found {
		all[i] = snapshotOf(s)
	}
	return all, err
}

// RemoveSnapshot removes a snapshot. VMs that were made from it stay.
func (h *Host) RemoveSnapshot(ctx context.Context, name string) error {
	if err := h.store.RemoveSnapshot(ctx, name); err != nil {
		return err
	}
	h.cleanLayers()
	return nil
}

// Draft makes a directory for a copy of a VM. The caller owes a Discard.
func (h *Host) Draft(ctx context.Context) (*store.Draft, error) { return h.store.NewDraft(ctx) }

// KeepSnapshot makes a draft that Capture has filled a snapshot. Without a name it gets one made
// of the VM's and of the time.
func (h *Host) KeepSnapshot(ctx context.Context, d *store.Draft, name string) (Snapshot, error) {
	snap, err := d.Snapshot()
	if err != nil {
		return Snapshot{}, err
	}
	if snap.Running {
		if err := makeLast(ctx, d.Dir); err != nil {
			return Snapshot{}, err
		}
	}
	if name == "" {
		name = store.SnapshotName(snap.VM, snap.Created)
	}
	snap, err = d.Keep(ctx, name)
	return snapshotOf(snap), err
}

// Snapshot returns what a snapshot was made of.
func (h *Host) Snapshot(ctx context.Context, name string) (store.Snapshot, error) {
	return h.store.Snapshot(ctx, name)
}

// CreateFrom makes a VM that is a copy: of its spec only the name, whether it is to be kept, and
// what is added to the environment count.
func (h *Host) CreateFrom(ctx context.Context, snap store.Snapshot, spec Spec) (*VM, error) {
	release, err := h.layers.Hold(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	generated := spec.Name == ""
	if generated {
		spec.Name = store.GenerateName()
	}
	if err := checkEnv(spec.Env); err != nil {
		return nil, err
	}
	rec := store.Record{Name: spec.Name, Design: snap.Design, Ephemeral: !spec.Keep, Copied: true, MachineID: newMachineID()}
	rec.Env = slices.Concat(snap.Env, spec.Env)
	v, err := h.claimNew(ctx, rec, generated)
	if err != nil {
		return nil, err
	}
	if err := takeCopy(v.claim, snap, func(*store.Record) {}); err != nil {
		return nil, v.unmake(ctx, err)
	}
	return v, nil
}

// newMachineID makes what tells one guest from others: a version 4 UUID, as programs expect.
func newMachineID() string {
	var id [16]byte
	rand.Read(id[:]) // never fails
	id[6] = id[6]&0xf | 0x40
	id[8] = id[8]&0x3f | 0x80
	return hex.EncodeToString(id[:])
}

// takeCopy gives the VM the disk of a copy, and its memory, and changes its record at the same
// time.
func takeCopy(claim *store.Claim, snap store.Snapshot, change func(*store.Record)) (err error) {
	var disk, memory string
	defer func() {
		if err != nil && disk != "" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(claim.Dir(), disk)))
		}
		if err != nil && memory != "" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(claim.Dir(), memory)))
		}
	}()
	disk = store.NewDiskFile()
	if err := copyFile(saved.NewDraft(snap.Dir).Disk, filepath.Join(claim.Dir(), disk)); err != nil {
		return err
	}
	if snap.Running {
		memory = store.NewSavedDir()
		to := filepath.Join(claim.Dir(), memory)
		if err := errors.Join(os.Mkdir(to, 0o700), saved.Share(snap.Dir, to)); err != nil {
			return err
		}
	}
	return claim.Update(func(rec *store.Record) {
		rec.Disk, rec.Saved, rec.Copied = disk, memory, true
		change(rec)
	})
}

// copyFile copies a file that is small.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy disk: %w", err)
	}
	defer in.Close() //nolint:errcheck // only read from
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("copy disk: %w", err)
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("copy disk: %w", errors.Join(err, os.Remove(to)))
	}
	return nil
}

// Revert puts a VM that does not run back to what it was when the snapshot was made, its disk, its
// memory and what it was made of. What it had on its disk is lost. Its next start goes on from
// there.
func (v *VM) Revert(ctx context.Context, snapshot string) error {
	const op = "restore VM"
	v.life.Lock()
	defer v.life.Unlock()
	snap, err := v.host.store.Snapshot(ctx, snapshot)
	if err != nil {
		return fmt.Errorf("cannot %s: %w", op, err)
	}
	claim, r, err := v.own(ctx)
	if err != nil {
		return fmt.Errorf("cannot %s: %w", op, err)
	}
	err = v.revert(ctx, claim, r, snap)
	if err = errors.Join(err, v.disownIdle()); err != nil {
		return fmt.Errorf("cannot %s: %w", op, err)
	}
	return nil
}

func (v *VM) revert(ctx context.Context, claim *store.Claim, r *run, snap store.Snapshot) error {
	v.mu.Lock()
	coming := v.revival != nil
	v.mu.Unlock()
	if r != nil || coming || claim.Record().Run != nil {
		return fmt.Errorf("%w: stop it first", ErrRunning)
	}
	release, err := v.host.layers.Hold(ctx)
	if err != nil {
		return err
	}
	err = takeCopy(claim, snap, func(rec *store.Record) {
		rec.Design, rec.MainRun = snap.Design, nil
	})
	release()
	if err == nil {
		err = claim.Tidy()
	}
	if err != nil {
		return err
	}
	v.host.cleanLayers()
	return nil
}
