package smolvm

import (
	"log/slog"

	"github.com/smolvm/smolvm/internal/control"
	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/machine"
	"github.com/smolvm/smolvm/internal/oci"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/timing"
	"github.com/smolvm/smolvm/internal/vmm"
)

// Option changes what a VM is made from or how this program deals with it. Those
// that describe the VM itself count for [New] and [Launch] alone.
type Option func(*config)

type config struct {
	spec machine.Spec
	host control.Options
}

func newConfig(opts []Option) config {
	var c config
	for _, opt := range opts {
		opt(&c)
	}
	return c
}

// Name gives the VM a name: a DNS label, which is its host name too. Without it
// a readable one is made up.
func Name(name string) Option { return func(c *config) { c.spec.Name = name } }

// Image chooses the image that the VM's disk is made on. The default is "debian",
// which is made from the host's own package sources when it is first used. Any other is
// the one of that name that is here, see [Images], or else the one that a registry has, by the
// name that it has in Docker: "python:3.13-alpine", "ghcr.io/x/y:1". Or it is a place, as in
// [BuildOptions].
func Image(name string) Option { return func(c *config) { c.spec.Image = name } }

// PullPolicy says when a registry is asked for an image.
type PullPolicy = image.PullPolicy

// The pull policies.
const (
	PullMissing = image.PullMissing // if there is no image of that name here; the default
	PullAlways  = image.PullAlways  // always, for what the name means there now
	PullNever   = image.PullNever
)

// PullImage chooses when a registry is asked for the VM's image.
func PullImage(policy PullPolicy) Option { return func(c *config) { c.spec.Pull = policy } }

// InsecureRegistries allows plain HTTP, and TLS with any certificate, where images are fetched from
// registries. Those on loopback addresses may use plain HTTP in any case.
func InsecureRegistries() Option { return func(c *config) { c.host.InsecureRegistries = true } }

// Memory sets the guest's memory in MiB. The default is 512.
func Memory(mib int) Option { return func(c *config) { c.spec.MemoryMiB = mib } }

// CPUs sets the number of the guest's processors. The default is 1.
func CPUs(n int) Option { return func(c *config) { c.spec.CPUs = n } }

// DiskSize sets the size of the VM's disk in bytes. It takes space only as it
// is written. The default, and the least, is the image's size.
func DiskSize(bytes int64) Option { return func(c *config) { c.spec.DiskSize = bytes } }

// Disk is a disk that a VM has besides its own: a file, or a block device, of the host. It need not
// have an absolute path when it is given, nor a format: DiskQcow2 if the path ends in ".qcow2", else
// DiskRaw.
type Disk = machine.Disk

// The formats of disks.
const (
	DiskRaw   = machine.DiskRaw
	DiskQcow2 = machine.DiskQcow2
)

// Disks gives the VM more disks, which the guest has as /dev/vdb, /dev/vdc and so on. It may be
// given several times. A VM with such a disk boots, and cannot be copied if it may write to one.
// Only one VM at a time can run with a disk, unless all of them only read it.
func Disks(disks ...Disk) Option {
	return func(c *config) { c.spec.Disks = append(c.spec.Disks, disks...) }
}

// Env adds to the environment of every command in the guest: entries of the
// form "NAME=value". It may be given several times.
func Env(entries ...string) Option {
	return func(c *config) { c.spec.Env = append(c.spec.Env, entries...) }
}

// User is who all commands in the VM run as, the main process too, unless they say otherwise: a name or
// a number, with ":GROUP" behind it if wanted. The default is the image's, or else root.
func User(user string) Option { return func(c *config) { c.spec.User = user } }

// WorkingDir is the directory that all commands in the VM run in, the main process too, unless they say
// otherwise: an absolute path, of what is there. The default is the image's, or else the user's home.
func WorkingDir(dir string) Option { return func(c *config) { c.spec.WorkingDir = dir } }

// Network chooses how the VM reaches the network. The default is NetworkAuto.
func Network(mode NetworkMode) Option { return func(c *config) { c.spec.Network = mode } }

// SharedFolder is a folder of the host that a guest has. Its JSON is a contract, as that of [Info] is.
type SharedFolder = machine.SharedFolder

// Share gives the guest folders of the host, which it sees at paths of its own as they are on the
// host now, and may change unless they are ReadOnly. A Host that is relative counts from the
// current directory. They are kept with the VM, and must be there whenever it is made or started:
// else that fails with ErrFolder. What a guest may do there is told in docs/folders.md. Share may
// be given several times.
func Share(folders ...SharedFolder) Option {
	return func(c *config) { c.spec.Shares = append(c.spec.Shares, folders...) }
}

// Keep lets the VM outlive this program: [VM.Close] stops it but keeps it, and
// [Open] finds it again. Without it the VM is deleted when this program closes it
// or dies.
func Keep() Option { return func(c *config) { c.spec.Keep = true } }

// Background lets VMs be run by background processes of their own, which outlive this
// program: see [OwnerProgram]. [VM.Close] then leaves the VM as it is.
func Background() Option { return func(c *config) { c.host.Background = true } }

// OwnerProgram is the program that runs VMs in the background, those too that lost the process
// which did: "PROGRAM own NAME" is to call [Own]. The default is the command smolvm, if it is
// in the PATH. Without one, this program itself takes over what lost its owner.
func OwnerProgram(program string) Option {
	return func(c *config) { c.host.Program = program }
}

// DefaultDataDir is the data directory of the current user that [DataDir] changes.
func DefaultDataDir() (string, error) { return store.DefaultRoot() }

// DataDir sets the directory for images and VMs. The default is
// $SMOLVM_DATA_DIR, else /var/lib/smolvm for root and ~/.local/share/smolvm
// for others. Other users also find the images in /var/lib/smolvm.
func DataDir(path string) Option { return func(c *config) { c.host.DataDir = path } }

// Version is what this program calls its version of SmolVM. Other processes are told it where
// that matters.
func Version(version string) Option { return func(c *config) { c.host.Version = version } }

// Logger receives what SmolVM has to say. The default is to be silent.
func Logger(log *slog.Logger) Option { return func(c *config) { c.host.Log = log } }

// OnProgress is called while something takes its time, such as the making of
// an image. Calls come one after the other.
func OnProgress(report func(Progress)) Option { return func(c *config) { c.host.Progress = report } }

// Accelerate forces an accelerator. By default KVM is used if it works, else TCG.
func Accelerate(with Accelerator) Option { return func(c *config) { c.host.Accelerator = with } }

// ColdBoot has VMs boot. By default a VM that starts for the first time goes on from a template:
// a guest of its kind that has booted before, and has no identity yet.
func ColdBoot() Option { return func(c *config) { c.host.ColdBoot = true } }

// DiscardMemory has a VM boot from its disk that was suspended, or copied while it ran, rather than
// go on from where it was. What was only in its memory is lost.
func DiscardMemory() Option { return func(c *config) { c.host.DiscardMemory = true } }

// Origin is what a VM started from.
type Origin = machine.Origin

// The origins.
const (
	FromBoot     = machine.FromBoot
	FromTemplate = machine.FromTemplate
	FromSaved    = machine.FromSaved
)

// Stage is one step of a start, and the time that it took.
type Stage = timing.Stage

// Progress tells how far something has come.
type Progress = image.Progress

// LayerProgress tells how far a layer of a container image has come.
type LayerProgress = oci.Progress

// The states of a layer. It ends in LayerDone or LayerCached, unless the whole fails.
const (
	LayerWaiting     = oci.Waiting     // for its turn, or for another process that fetches it
	LayerVerifying   = oci.Verifying   // what there is of it is read
	LayerDownloading = oci.Downloading // from wherever it is, files included
	LayerDone        = oci.Done
	LayerCached      = oci.Cached // it was there, or another process has fetched it
)

// NetworkMode says how a VM reaches the network.
type NetworkMode = machine.NetworkMode

// The network modes.
const (
	// NetworkAuto is NetworkNAT where this process may set that up, else NetworkUser.
	NetworkAuto = machine.NetworkAuto
	// NetworkNAT gives the VM an address of its own, behind the host's. It needs
	// CAP_NET_ADMIN.
	NetworkNAT = machine.NetworkNAT
	// NetworkUser lets the VM out through a user-mode stack. It needs no privilege.
	NetworkUser = machine.NetworkUser
	// NetworkNone gives the VM no network. Commands and forwards work all the same.
	NetworkNone = machine.NetworkNone
)

// Accelerator says how guest code is executed.
type Accelerator = vmm.Accelerator

// The accelerators.
const (
	KVM = vmm.KVM // on the processor, isolated by its virtualization
	TCG = vmm.TCG // emulated: slower, and no security boundary
)

// PortOption changes how [VM.ExposeLocal] and others deal with a port.
type PortOption func(*forward.Request)

func newRequest(req forward.Request, opts []PortOption) forward.Request {
	for _, opt := range opts {
		opt(&req)
	}
	return req
}

// Protocol is [TCP] or [UDP].
type Protocol = forward.Protocol

// The protocols.
const (
	TCP = forward.TCP
	UDP = forward.UDP
)

// Over chooses the protocol of a port. The default is TCP.
func Over(protocol Protocol) PortOption {
	return func(r *forward.Request) { r.Protocol = protocol }
}

// HostPort asks for a host port, 1 to 65535. If it is busy another one is used,
// unless [Strict] is given too.
func HostPort(port int) PortOption {
	return func(r *forward.Request) { r.HostPort, r.HostPortSet = port, true }
}

// Strict lets [VM.ExposeLocal] fail with [ErrPortInUse] if the host port asked for is
// busy.
func Strict() PortOption { return func(r *forward.Request) { r.Strict = true } }

// Transport forces a transport: [NFTables] or [SSHTunnel]. By default the first is
// used where it can be, else the second.
func Transport(kind TransportKind) PortOption {
	return func(r *forward.Request) { r.Transport = kind }
}

// TransportKind says what carries a forward's connections.
type TransportKind = forward.Transport

// The transports.
const (
	// NFTables is the kernel's own forwarding. It needs CAP_NET_ADMIN.
	NFTables = forward.NFTables
	// SSHTunnel carries connections over the guest channel. It works everywhere, and
	// reaches services on the guest's own loopback.
	SSHTunnel = forward.SSHTunnel
)

// Forward is an exposed port as it is now.
type Forward = forward.Forward

// Pair is a host port and the guest's port that it leads to.
type Pair = forward.Pair

// Traffic is what has gone through a forward.
type Traffic = forward.Traffic

// Health is what a client of a forward can expect.
type Health = forward.Health

// The states of a forward.
const (
	Active  = forward.Active  // something in the guest listens
	Waiting = forward.Waiting // nothing in the guest listens yet
	Down    = forward.Down    // nothing gets through; the Forward's Reason says why
)

// ForwardEvent is news of a forward.
type ForwardEvent = forward.Event

// The kinds of ForwardEvent.
const (
	ForwardExposed   = forward.Exposed
	ForwardChanged   = forward.Changed
	ForwardUnexposed = forward.Unexposed
)

// PortSpec is ports as people write them: [[HOST_IP:]HOST_PORT:]GUEST_PORT[/tcp|/udp],
// where both may be ranges of the same length, such as 8000-8010:9000-9010.
type PortSpec = forward.Spec

// ParsePortSpec reads a PortSpec, such as "8000", "8080:80" or "5353:53/udp". HOST_IP
// may be 127.0.0.1, ::1 or localhost, and all mean localhost, on both of its addresses. It fails
// with ErrInvalidPort if a port is out of range, else with ErrInvalidPortSpec.
func ParsePortSpec(text string) (PortSpec, error) { return forward.ParseSpec(text) }
