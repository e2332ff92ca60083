package machine

import (
	"fmt"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/store"
)

// NetworkMode says how a VM reaches the network.
type NetworkMode string

// The network modes.
const (
	// NetworkAuto is NetworkNAT where the process may set that up, else
	// NetworkUser.
	NetworkAuto NetworkMode = "auto"
	// NetworkNAT gives the VM an address of its own behind the host. It needs
	// CAP_NET_ADMIN.
	NetworkNAT NetworkMode = "nat"
	// NetworkUser lets the VM out through a user-mode stack. It needs no privilege.
	NetworkUser NetworkMode = "user"
	// NetworkNone gives the VM no network. Commands and forwards work all the same.
	NetworkNone NetworkMode = "none"
)

// Spec is what a VM is made from. Zero values stand for the defaults.
type Spec struct {
	Name      string           // default: a generated one
	Image     string           // default: DefaultImage
	Pull      image.PullPolicy // default: image.PullMissing
	MemoryMiB int              // default: 512
	CPUs      int              // default: 1
	DiskSize  int64            // bytes, of which a sector's are rounded up; default, and least: the image's
	Disks     []Disk           // besides the VM's own
	Env       []string
	Network   NetworkMode // default: NetworkAuto
	Shares    []SharedFolder
	// Main is what the main command is made of; nil: there is none.
	Main       *MainSpec
	Restart    RestartPolicy
	User       string            // of all commands that say nothing else; default: the image's, or else root
	WorkingDir string            // likewise, from the root; default: the image's, or else the user's home
	StopSignal string            // as ParseSignal reads it; default: the image's, or else SIGTERM
	Labels     map[string]string // besides the image's, over which they go
	// Publish is exposed when the VM is started, and PublishAll the ports that the image names.
	Publish    []forward.Request
	PublishAll bool
	Keep       bool // the VM outlives the program that made it
}

// DefaultImage is the image of a VM that asks for none.
const DefaultImage = "debian"

// Limits of a VM's size.
const (
	minMemoryMiB = 128
	maxMemoryMiB = 1 << 20
	maxCPUs      = 64
	maxDiskSize  = 64 << 40
)

// sectorSize is what disks have a multiple of.
const sectorSize = 512

// complete fills in the defaults and checks the result.
func (s Spec) complete() (Spec, error) {
	if s.Name == "" {
		s.Name = store.GenerateName()
	}
	if s.Image == "" {
		s.Image = DefaultImage
	}
	if s.Pull == "" {
		s.Pull = image.PullMissing
	}
	if s.MemoryMiB == 0 {
		s.MemoryMiB = 512
	}
	if s.CPUs == 0 {
		s.CPUs = 1
	}
	if s.Network == "" {
		s.Network = NetworkAuto
	}
	if err := store.CheckName(s.Name); err != nil {
		return s, err
	}
	switch s.Network {
	case NetworkAuto, NetworkNAT, NetworkUser, NetworkNone:
	default:
		return s, fmt.Errorf("%w: network must be %s, %s, %s or %s, not %q", ErrInvalidOption,
			NetworkAuto, NetworkNAT, NetworkUser, NetworkNone, s.Network)
	}
	switch s.Pull {
	case image.PullMissing, image.PullAlways, image.PullNever:
	default:
		return s, fmt.Errorf("%w: pull policy must be %s, %s or %s, not %q", ErrInvalidOption,
			image.PullMissing, image.PullAlways, image.PullNever, s.Pull)
	}
	if s.MemoryMiB < minMemoryMiB || s.MemoryMiB > maxMemoryMiB {
		return s, fmt.Errorf("%w: memory must be %d to %d MiB, not %d", ErrInvalidOption, minMemoryMiB, maxMemoryMiB, s.MemoryMiB)
	}
	if s.CPUs < 1 || s.CPUs > maxCPUs {
		return s, fmt.Errorf("%w: CPUs must be 1 to %d, not %d", ErrInvalidOption, maxCPUs, s.CPUs)
	}
	if s.DiskSize < 0 || s.DiskSize > maxDiskSize {
		return s, fmt.Errorf("%w: disk size must be at most %d TiB", ErrInvalidOption, maxDiskSize>>40)
	}
	s.DiskSize = (s.DiskSize + sectorSize - 1) / sectorSize * sectorSize
	var err error
	if s.Disks, err = completeDisks(s.Disks); err != nil {
		return s, err
	}
	if s.Shares, err = completeFolders(s.Shares); err != nil {
		return s, err
	}
	if err := s.checkConduct(); err != nil {
		return s, err
	}
	return s, checkEnv(s.Env)
}
