package machine

import (
	"context"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/vmm"
)

// Info is what can be said of a VM.
type Info struct {
	Name      string
	Status    Status
	Image     string
	Created   time.Time
	MemoryMiB int
	CPUs      int
	DiskSize  int64 // bytes
	Dir       string
	Console   string // path of the guest's console log
	OwnerPID  int    // 0 without a living owner
	Keep      bool

	// The following are known to the owner of a running VM only.

	VMMPID            int
	Accelerator       vmm.Accelerator
	AcceleratorReason string
	Network           NetworkMode
	NetworkReason     string     // why it is not what it could be
	IP                netip.Addr // invalid when the host cannot reach one

	// Err says why the VM's record cannot be read. Then only Name and Dir are set.
	Err error
}

// Info says what is known of the VM now.
func (v *VM) Info(ctx context.Context) (Info, error) {
	v.mu.Lock()
	claim, r, deleted := v.claim, v.run, v.deleted
	v.mu.Unlock()
	if deleted {
		return Info{Name: v.name, Status: StatusDeleted}, nil
	}
	if claim == nil {
		entry, err := v.host.store.Get(ctx, v.name)
		if err != nil {
			return Info{Name: v.name}, err
		}
		return infoOf(entry), nil
	}
	info := infoOf(store.Entry{Record: claim.Record(), Dir: claim.Dir(), Owned: true})
	if r == nil {
		// The VM may have ended a moment ago, before its record said so.
		if info.Status == StatusRunning {
			info.Status = StatusStopped
		}
		return info, nil
	}
	info.Status = StatusRunning
	if r.paused.Load() {
		info.Status = StatusPaused
	}
	info.VMMPID = r.machine.PID()
	info.Accelerator, info.AcceleratorReason = r.accelerator, r.acceleratorReason
	info.Network, info.NetworkReason = r.net.mode, r.net.reason
	info.IP = r.net.address()
	return info, nil
}

func infoOf(e store.Entry) Info {
	if e.Err != nil {
		return Info{Name: e.Name, Dir: e.Dir, Err: e.Err}
	}
	info := Info{
		Name: e.Name, Status: StatusCreated, Image: e.Image, Created: e.Created, MemoryMiB: e.MemoryMiB, CPUs: e.CPUs,
		DiskSize: e.DiskSize, Dir: e.Dir, Console: filepath.Join(e.Dir, vmm.ConsoleLog), Keep: !e.Ephemeral,
		Network: NetworkMode(e.Network),
	}
	switch {
	case e.Running && e.Owned:
		info.Status = StatusRunning
	case e.Running || e.Started:
		info.Status = StatusStopped
	}
	if e.Owned {
		info.OwnerPID = e.OwnerPID
	}
	return info
}
