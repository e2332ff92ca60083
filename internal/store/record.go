package store

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

// recordVersion is the version of the record's format that this program
// writes. It reads no later one.
const recordVersion = 1

const recordFile = "record.json"

// Record is what is kept of a VM. It says what the VM is and what was asked for
// it, never what the kernel or the guest do at the moment.
type Record struct {
	Version   int       `json:"version"`
	Name      string    `json:"name"`
	Created   time.Time `json:"created"`
	Image     string    `json:"image"`
	ImageID   string    `json:"image_id"`
	MemoryMiB int       `json:"memory_mib"`
	CPUs      int       `json:"cpus"`
	DiskSize  int64     `json:"disk_bytes"`
	Env       []string  `json:"env,omitempty"`
	Network   string    `json:"network"`
	// Ephemeral VMs belong to the program that made them: when it is gone, so
	// are they.
	Ephemeral bool `json:"ephemeral"`
	// HostKey is the PEM private key of the guest's SSH server.
	HostKey []byte `json:"host_key"`
	// Started is set by the first start, even if it fails.
	Started bool `json:"started"`
	// Running is set while the owner runs the VM, or is about to. Without a living
	// owner it means that the VM crashed with it.
	Running bool `json:"running"`
	// Interface is the VM's interface on the host while it runs, if it has one.
	Interface *Interface `json:"interface,omitempty"`
	// OwnerPID is the process that holds, or held last, the VM's lock.
	OwnerPID int `json:"owner_pid"`
}

// Interface is a network interface of the host.
type Interface struct {
	Name  string `json:"name"`
	Index int    `json:"index"`
}

// readRecord reads the record of the VM in dir.
func readRecord(dir string) (Record, error) {
	path := filepath.Join(dir, recordFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return Record{}, fmt.Errorf("read VM record: %w", err)
	}
	rec, err := parseRecord(data)
	if err != nil {
		return Record{}, fmt.Errorf("parse VM record %s: %w", path, err)
	}
	return rec, nil
}

func parseRecord(data []byte) (Record, error) {
	var rec Record
	if err := json.Unmarshal(data, &rec); err != nil {
		return Record{}, err
	}
	if rec.Version < 1 || rec.Version > recordVersion {
		return Record{}, fmt.Errorf("version %d is not known to this program, which reads up to %d", rec.Version, recordVersion)
	}
	if err := CheckName(rec.Name); err != nil {
		return Record{}, err
	}
	return rec, nil
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
