package store

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// recordVersion is the version of the record's format that this program writes. It reads
// earlier ones too, see migration.go, and no later one.
const recordVersion = 2

const recordFile = "record.json"

// Record is what is kept of a VM. It says what the VM is and what was asked for
// it, never what the kernel or the guest do at the moment.
type Record struct {
	Version int       `json:"version"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Design
	// MainRun is what became of the main process that was started last; nil: none was.
	MainRun *MainRun `json:"main_run,omitempty"`
	// Restarts counts how often the owner started the main process again, or the VM, since
	// somebody started the VM.
	Restarts int `json:"restarts,omitempty"`
	// Ephemeral VMs are removed when they end, or when the program that made them does.
	Ephemeral bool `json:"ephemeral"`
	// HostKey is the PEM private key of the guest's SSH server.
	HostKey []byte `json:"host_key"`
	// Started is when the VM was last started, even if that failed; zero: never.
	Started time.Time `json:"started,omitzero"`
	// Disk is the file that the VM's disk is now, in its directory; empty: DiskFile says.
	Disk string `json:"disk,omitempty"`
	// Copied tells that the disk had something on it when the VM was made.
	Copied bool `json:"copied,omitempty"`
	// Saved is the directory, in the VM's, of the saved machine that the VM goes on from when it is
	// started next; empty: it boots.
	Saved string `json:"saved,omitempty"`
	// MachineID is what the guest is to have as its machine ID; empty: what it has.
	MachineID string `json:"machine_id,omitempty"`
	// Run is set while the owner runs the VM, or is about to. Without a living owner it
	// means that the VM runs without one, or crashed with it.
	Run *Run `json:"run,omitempty"`
	// OwnerPID is the process that holds, or held last, the VM's lock.
	OwnerPID int `json:"owner_pid"`
}

// Design is what a VM is made of, and what was asked for it. Its copies have it too.
type Design struct {
	Image     string   `json:"image"`
	ImageID   string   `json:"image_id"`
	MemoryMiB int      `json:"memory_mib"`
	CPUs      int      `json:"cpus"`
	DiskSize  int64    `json:"disk_bytes"`
	Disks     []Disk   `json:"disks,omitempty"` // besides its own
	Env       []string `json:"env,omitempty"`
	Network   string   `json:"network"`
	// Shares are the folders of the host that the guest has, in the order in which they are mounted.
	Shares []SharedFolder `json:"shares,omitempty"`
	Conduct
}

// SharedFolder is a folder of the host that a guest has.
type SharedFolder struct {
	Host     string `json:"host"`  // absolute path
	Guest    string `json:"guest"` // where it is in the guest: absolute path
	ReadOnly bool   `json:"read_only,omitempty"`
}

// Conduct is what was asked for the course of a VM's life.
type Conduct struct {
	// Main is the command that the owner runs whenever the VM starts, and with whose end the VM
	// ends; empty: there is none.
	Main []string `json:"main,omitempty"`
	// Restart says what is started again when it ends, as people write it; empty: nothing.
	Restart string `json:"restart,omitempty"`
	// User and WorkingDir are those of all commands that say nothing else; empty: the image's.
	User       string `json:"user,omitempty"`
	WorkingDir string `json:"working_dir,omitempty"`
	// StopSignal is the name of what asks the main process to end; empty: SIGTERM.
	StopSignal string            `json:"stop_signal,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
}

// MainRun is a main process, or what became of it.
type MainRun struct {
	ID      string    `json:"id"`  // by which the guest knows it
	PID     int       `json:"pid"` // in the guest
	Started time.Time `json:"started"`
	// Ended is zero while it runs. Without a run of the VM it ended with that, nobody knows how.
	Ended    time.Time `json:"ended,omitzero"`
	ExitCode int       `json:"exit_code"`
	Signal   string    `json:"signal,omitempty"` // that ended it, without "SIG"
}

// Run is what a new owner has to know of a VM that runs.
type Run struct {
	// Detached VMs outlive their owner.
	Detached          bool   `json:"detached,omitempty"`
	Accelerator       string `json:"accel"`
	AcceleratorReason string `json:"accel_reason,omitempty"`
	// Origin is what the run began with, a boot or a template.
	Origin        string `json:"origin,omitempty"`
	OriginReason  string `json:"origin_reason,omitempty"`
	Network       string `json:"network"` // what Record.Network came to
	NetworkReason string `json:"network_reason,omitempty"`
	// Held tells that the owner keeps the guest's processors still, to save the machine, though
	// nobody paused it. Without that owner it is to go on.
	Held bool `json:"held,omitempty"`
	// Interface is the VM's interface on the host, if it has one.
	Interface *Interface `json:"interface,omitempty"`
}

// Interface is a network interface of the host.
type Interface struct {
	Name  string `json:"name"`
	Index int    `json:"index"`
}

const (
	diskSuffix = ".qcow2"
	// defaultDisk is the file that a VM's disk is at first.
	defaultDisk = "disk" + diskSuffix
)

// DiskFile is the name of the VM's disk, in its directory.
func (r Record) DiskFile() string { return cmp.Or(r.Disk, defaultDisk) }

// NewDiskFile returns a name that the VM's disk can have instead.
func NewDiskFile() string { return "disk-" + strings.ToLower(rand.Text()) + diskSuffix }

// NewSavedDir returns a name for Record.Saved.
func NewSavedDir() string { return savedPrefix + strings.ToLower(rand.Text()) }

const savedPrefix = "saved-"

// readRecord reads the record of the VM in dir.
func readRecord(dir string) (Record, error) {
	path := filepath.Join(dir, recordFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return Record{}, fmt.Errorf("read VM record: %w", err)
	}
	rec, err := parseRecord(data)
	if err != nil {
		return Record{}, fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	// A rename is the directory's; the record follows with its next change.
	rec.Name = filepath.Base(dir)
	return rec, nil
}

func parseRecord(data []byte) (Record, error) {
	var format struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &format); err != nil {
		return Record{}, err
	}
	var rec Record
	var err error
	switch version := format.Version; version {
	case recordVersion:
		err = json.Unmarshal(data, &rec)
	case 1:
		rec, err = migrateFrom1(data)
	default:
		err = fmt.Errorf("version %d is not known to this program, which reads up to %d", version, recordVersion)
	}
	if err != nil {
		return Record{}, err
	}
	return rec, CheckName(rec.Name)
}

// writeRecord replaces the record of the VM in dir. After a crash the file
// holds either the old record or the new one, whole.
func writeRecord(dir string, rec Record) error {
	rec.Version = recordVersion
	data, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return fmt.Errorf("encode VM record: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(dir, recordFile), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write VM record: %w", err)
	}
	return nil
}
