package machine

import (
	"context"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/timing"
	"github.com/smolvm/smolvm/internal/vmm"
)

// Info is what can be said of a VM.
type Info struct {
	Name      string    `json:"name"`
	Status    Status    `json:"status,omitempty"`
	Image     string    `json:"image,omitempty"`
	ImageID   string    `json:"image_id,omitempty"`
	Created   time.Time `json:"created,omitzero"`
	Started   time.Time `json:"started,omitzero"` // when it was last started; zero: never
	MemoryMiB int       `json:"memory_mib,omitempty"`
	CPUs      int       `json:"cpus,omitempty"`
	DiskSize  int64     `json:"disk_bytes,omitempty"` // what the guest sees
	Disks     []Disk    `json:"disks,omitempty"`      // besides its own
	Env       []string  `json:"env,omitempty"`
	Keep      bool      `json:"keep"` // it is not removed when it ends
	// Main is nil if there is no main process.
	Main       *MainInfo     `json:"main,omitempty"`
	Restart    RestartPolicy `json:"restart,omitempty"`
	StopSignal string        `json:"stop_signal,omitempty"` // what asks its main process to end
	// User and WorkingDir are those of all commands that say nothing else, unless they are the image's.
	User       string            `json:"user,omitempty"`
	WorkingDir string            `json:"working_dir,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Dir        string            `json:"dir"`
	Console    string            `json:"console,omitempty"` // path of the guest's console log

	// Shares are the folders of the host that the guest has.
	Shares []SharedFolder `json:"shares,omitempty"`

	// Owner is the process that runs the VM, or holds it for another reason.
	Owner OwnerInfo `json:"owner,omitzero"`

	// The following are known of a running VM only.

	VMM     VMMInfo     `json:"vmm,omitzero"`
	Network NetworkInfo `json:"network,omitzero"`
	IP      netip.Addr  `json:"ip,omitzero"` // the guest's; invalid when the host cannot reach one
	// Entrypoint and Cmd are the image's own command: the program, and what it is given
	// unless something else is.
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	// ExposedPorts are those that the image names, such as "80/tcp".
	ExposedPorts []string `json:"exposed_ports,omitempty"`
	// Forwards is never nil in the Info of a VM whose record could be read.
	Forwards []forward.Forward `json:"forwards"`
	Usage    Usage             `json:"usage,omitzero"`

	// Err says why the VM's record cannot be read, or why its owner does not answer. In
	// the first case only Name and Dir are set, in the second what the record tells.
	Err error `json:"-"`
}

// OwnerInfo describes the process that owns a VM.
type OwnerInfo struct {
	PID     int    `json:"pid"`
	Version string `json:"version,omitempty"` // of SmolVM, as it calls itself
}

// VMMInfo describes the virtual machine monitor of a running VM.
type VMMInfo struct {
	PID         int             `json:"pid"`
	Accelerator vmm.Accelerator `json:"accel"`
	Reason      string          `json:"accel_reason,omitempty"` // why it is that one
	// Origin is what the VM started from, and OriginReason why it booted.
	Origin       Origin `json:"origin,omitempty"`
	OriginReason string `json:"origin_reason,omitempty"`
	// Stages are what its start spent its time on, one after the other. They are not known of
	// a VM that has lost the owner that started it.
	Stages []timing.Stage `json:"start,omitempty"`
}

// NetworkInfo describes how a running VM is connected.
type NetworkInfo struct {
	Mode      NetworkMode `json:"mode"`
	Reason    string      `json:"reason,omitempty"`    // why it is not what it could be
	Interface string      `json:"interface,omitempty"` // the host's end, if it is an interface
}

// Info says what is known of the VM now.
func (v *VM) Info(ctx context.Context) (Info, error) {
	v.mu.Lock()
	claim, r, deleted, starting := v.claim, v.run, v.deleted, v.starting || v.revival != nil
	v.mu.Unlock()
	if deleted {
		return Info{Name: v.Name(), Status: StatusDeleted, Forwards: []forward.Forward{}}, nil
	}
	if claim == nil {
		entry, err := v.host.store.Get(ctx, v.Name())
		if err != nil {
			return Info{Name: v.Name()}, err
		}
		return infoOf(entry), nil
	}
	info := infoOf(store.Entry{Record: claim.Record(), Dir: claim.Dir(), Owned: true})
	info.Owner.Version = v.host.opts.Version
	if r == nil {
		switch {
		case starting:
			info.Status = StatusStarting
		case info.Status == StatusRunning:
			// The VM ended a moment ago, before its record said so.
			info.Status = StatusStopped
			info.Main = mainOf(claim.Record(), false)
		}
		return info, nil
	}
	info.Status = StatusRunning
	if r.paused.Load() {
		info.Status = StatusPaused
	}
	info.VMM = VMMInfo{PID: r.machine.PID(), Accelerator: r.accelerator, Reason: r.acceleratorReason, Origin: r.origin, OriginReason: r.originReason, Stages: r.startStages()}
	info.Network = r.net.info()
	info.IP = r.net.address()
	info.Entrypoint, info.Cmd = r.identity.config.Entrypoint, r.identity.config.Cmd
	info.ExposedPorts = r.identity.config.ExposedPorts
	info.Forwards = r.forwards.Forwards()
	info.Usage = v.usage(r, filepath.Join(claim.Dir(), claim.Record().DiskFile()))
	return info, nil
}

// infoOf is what a VM's record tells.
func infoOf(e store.Entry) Info {
	if e.Err != nil {
		return Info{Name: e.Name, Dir: e.Dir, Err: e.Err}
	}
	info := Info{
		Name: e.Name, Status: StatusCreated, Image: e.Image, ImageID: e.ImageID, Created: e.Created, Started: e.Started,
		MemoryMiB: e.MemoryMiB, CPUs: e.CPUs, DiskSize: e.DiskSize, Disks: e.Disks, Env: e.Env, Shares: e.Shares, Keep: !e.Ephemeral,
		Main: mainOf(e.Record, false), Restart: RestartPolicy(e.Restart), StopSignal: signalName(stopSignal(e.Record)), Labels: e.Labels,
		User: e.User, WorkingDir: e.WorkingDir,
		Dir: e.Dir, Console: filepath.Join(e.Dir, vmm.ConsoleLog), Network: NetworkInfo{Mode: NetworkMode(e.Network)}, Forwards: []forward.Forward{},
	}
	switch {
	case e.Run != nil && e.Owned || e.Orphaned():
		info.Status = StatusRunning
		info.Main = mainOf(e.Record, true)
	case e.Saved != "":
		info.Status = StatusSuspended
	case e.Copied || !e.Started.IsZero():
		info.Status = StatusStopped
	}
	if e.Owned {
		info.Owner.PID = e.OwnerPID
	}
	return info
}
