package store

// Disk is a disk that a VM has besides its own: a file, or a block device, of the host.
type Disk struct {
	Path     string `json:"path"`   // absolute
	Format   string `json:"format"` // DiskRaw or DiskQcow2
	ReadOnly bool   `json:"read_only,omitempty"`
}

// The formats of disks. One that is raw is never looked at: what a guest has written to it could
// pass for another.
const (
	DiskRaw   = "raw"
	DiskQcow2 = "qcow2"
)
