// Package guestapi holds what the host and the guest program must agree on:
// the name of the channel, the names of what is asked for over it that SSH has no name for,
// and their payloads. It imports neither side.
package guestapi

import (
	"net"
	"net/netip"
	"time"
)

// ChannelName is the name of the virtio-serial port that carries the guest
// channel. The guest finds it under /sys/class/virtio-ports/*/name.
const ChannelName = "org.smolvm.guest.0"

// HostsMark ends the lines in the guest's /etc/hosts that are of one guest alone.
const HostsMark = "# smolvm"

// SSHPort is where the guest's SSH server listens on its network address.
const SSHPort = 22

// Requests of a session, host to guest. One that fails is refused with a Failure
// as its payload.
const (
	// RequestConfigure gives the guest its Identity.
	RequestConfigure = "configure@smolvm"
	// RequestClock steps the guest's clock, by nothing if it is only to be read. Its payload is
	// a Clock, and so is that of its reply.
	RequestClock = "clock@smolvm"
	// RequestWatchListeners asks the guest to report its listeners
	// with RequestListeners, now and whenever they change. No payload, and no reply but that.
	RequestWatchListeners = "watch-listeners@smolvm"
	// RequestRest asks a guest that has no identity yet to get ready to be copied: to write
	// out its disk, and to forget what copies must not have in common. Its payload is an Identity
	// to rehearse with, which it forgets too. The reply comes when that is done.
	RequestRest = "rest@smolvm"
	// RequestSync asks the guest to write out its disk. The reply comes when that is done. No
	// payload.
	RequestSync = "sync@smolvm"
	// RequestPowerOff asks the guest to end its processes, sync its disk and
	// power off. The reply comes before the work begins. No payload.
	RequestPowerOff = "power-off@smolvm"
)

// RequestListeners is the request of a session, guest to host, that carries
// a Listeners. It wants no reply.
const RequestListeners = "listeners@smolvm"

// Types of channels, opened by the host. They save round trips: the payload
// travels with the opening, and its refusal is the answer.
const (
	// ChannelExec runs the Exec in its payload. It is accepted once the command
	// has started, and refused with a Failure as the message if it cannot start.
	// From there it behaves as a "session" channel: "signal", "exit-status" and
	// "exit-signal" are those of SSH. Closing it kills the command.
	ChannelExec = "exec@smolvm"
	// ChannelFiles moves files into the guest or out of it. Its payload is a Files. It is
	// refused with a Failure as the message if what it asks for cannot begin. The data
	// travels on the channel, towards the guest until the host ends its direction with
	// RequestEnd: without that it has broken off, and the guest does so, too. The guest ends with RequestFilesDone, whose payload is a Failure, empty
	// if all went well, and closes the channel.
	ChannelFiles = "files@smolvm"
	// ChannelFolder mounts a folder of the host. Its payload is a Folder. It is accepted once that is
	// mounted, and refused with a Failure as the message if it cannot be. On it go the messages of
	// FUSE, each of which begins with its length: the guest's kernel asks, the host answers. With the
	// channel the mount ends.
	ChannelFolder = "folder@smolvm"
	// ChannelMain has the guest run its main process and tells of it. Its payload is a Main. It is
	// refused with a Failure as the message if the process cannot start. The guest sends
	// RequestMainState at once, and again when the process has ended, and then closes the channel.
	// That the host closes it, or that it is lost, means nothing to the process.
	ChannelMain = "main@smolvm"
	// ChannelPing is always refused, at once: that is the answer. Unlike a global
	// request it never waits behind another request.
	ChannelPing = "ping@smolvm"
	// ChannelSSH carries an SSH connection, the host's end of which is the client. Connections into
	// the guest go through that. No payload.
	ChannelSSH = "ssh@smolvm"
	// ChannelDial connects to a TCP address as the guest sees it. Its payload is
	// a Dial.
	ChannelDial = "direct-tcpip"
	// ChannelDatagrams exchanges datagrams with a UDP address as the guest sees it.
	// Its payload is a Dial. Both ways each datagram is preceded by its length:
	// two bytes, the higher first.
	ChannelDatagrams = "datagrams@smolvm"
)

// Channel requests, without payload or reply, either way on a ChannelDial, and the first
// one towards the guest on a ChannelFiles. Without either of them before the end of a
// direction the session was lost.
const (
	// RequestEnd comes before the end of a direction, or of both, that is in order.
	RequestEnd = "end@smolvm"
	// RequestReset comes before the channel is closed: the sender's end of the TCP
	// connection was reset, and the other one is to be.
	RequestReset = "reset@smolvm"
)

// RequestFilesDone is the channel request, guest to host, that ends a ChannelFiles. It
// wants no reply.
const RequestFilesDone = "files-done@smolvm"

// Channel requests on a ChannelMain. They want no reply.
const (
	// RequestMainState, guest to host, carries a MainState.
	RequestMainState = "main-state@smolvm"
	// RequestMainSignal, host to guest, sends a signal to the process alone. Its payload is a
	// MainSignal.
	RequestMainSignal = "main-signal@smolvm"
)

// MaxPayload bounds a request's payload, in bytes.
const MaxPayload = 192 << 10

// Dial is the payload of ChannelDial, in SSH's own encoding. The host "localhost"
// means whichever loopback address has a listener.
type Dial struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

// ExitSignal is the payload of SSH's "exit-signal" request.
type ExitSignal struct {
	Signal     string // without "SIG"; a number if the signal has no name
	CoreDumped bool
	Message    string
	Language   string
}

// WindowChange is the payload of SSH's "window-change" request: the new size of a
// terminal, in characters and in pixels.
type WindowChange struct {
	Columns, Rows uint32
	Width, Height uint32
}

// Clock is what the guest's clock says, in a reply, or how far it is to be stepped, in a request.
type Clock struct {
	Time time.Time
	Step time.Duration
}

// Failure says why a request was refused.
type Failure struct {
	Error string `json:"error"`
	Kind  Kind   `json:"kind,omitempty"`
}

// Kind sorts failures that callers tell apart.
type Kind string

// The kinds of failure. The zero Kind is any other.
const (
	KindNotExist     Kind = "not-exist"     // a file or directory does not exist
	KindExist        Kind = "exist"         // it is there, and must not be
	KindPermission   Kind = "permission"    // it may not be used so
	KindIsDirectory  Kind = "is-directory"  // it is a directory, and must not be
	KindNotDirectory Kind = "not-directory" // it is none, and must be
	KindNoSpace      Kind = "no-space"      // the disk is full
)

// Identity is all that makes one guest differ from another. A guest boots
// without one; the host sends it on every start. Receiving it twice is harmless.
type Identity struct {
	Hostname string
	Time     time.Time
	// Entropy is credited to the guest's random number generator.
	Entropy []byte
	Network *Network // nil: loopback only
	// HostKey is the PEM private key of the guest's SSH server on the network.
	HostKey []byte
	// AuthorizedKeys are the keys, in authorized_keys format, that may log in
	// there.
	AuthorizedKeys []byte
	// MachineID is to be the guest's machine ID. Empty: the one that it has, or one of its own
	// making.
	MachineID string
	// Env is set for every command, as "NAME=value".
	Env []string
	// GrowRoot asks for the root filesystem to be grown to the size of its disk.
	GrowRoot bool
}

// Network is the configuration of the guest's one Ethernet interface.
type Network struct {
	// MAC is the interface's own address; empty: the one that it has.
	MAC         net.HardwareAddr
	Address     netip.Prefix // a /31 out of the pool, or user-mode's /24
	Gateway     netip.Addr
	Nameservers []netip.Addr
	Search      []string
}

// Exec is a command to run in the guest.
type Exec struct {
	// Argv is the program and its arguments. The program is looked up in the
	// command's PATH when it has no slash. Empty: the user's login shell.
	Argv []string `json:"argv"`
	Dir  string   `json:"dir,omitempty"`  // default: the user's home
	Env  []string `json:"env,omitempty"`  // on top of the guest's own
	User string   `json:"user,omitempty"` // name or number, with ":GROUP" if wanted; default: root
	// Stdin tells that input will come; without it the command reads /dev/null.
	Stdin bool `json:"stdin,omitempty"`
	// Terminal runs the command in a terminal of its own, which is its input and output
	// at once; "window-change" of SSH changes its size.
	Terminal *Terminal `json:"terminal,omitempty"`
	// Detach lets the command live on when the channel is closed. It has no input, and
	// its output goes to the guest's console.
	Detach bool `json:"detach,omitempty"`
	// PowerOff has the guest power off when a detached command has ended.
	PowerOff bool `json:"power_off,omitempty"`
}

// Main is the main process that the guest is to have: there is one at a time, which the guest
// remembers when it has ended, until it is replaced.
type Main struct {
	// ID is the process's, made up by the host. A guest that has it already does not start it
	// again, so asking twice is harmless.
	ID string
	// Replaces is the ID of the process that has ended and that this one takes the place of; empty:
	// none. A guest that has another one keeps that, and tells of it.
	Replaces string
	Exec     Exec // without Stdin, Terminal, Detach and PowerOff
}

// MainState is what a guest knows of its main process. Its times are of the guest's clock.
type MainState struct {
	ID      string
	PID     int // in the guest
	Started time.Time
	Ended   time.Time // zero: it runs
	Status  ExitStatus
}

// MainSignal is the payload of RequestMainSignal: the signal's number on Linux.
type MainSignal struct {
	Number int
}

// Terminal is a terminal for a command.
type Terminal struct {
	Term    string `json:"term"` // its kind: the value of TERM
	Columns int    `json:"columns"`
	Rows    int    `json:"rows"`
}

// FilesOp says what a ChannelFiles does.
type FilesOp string

// The operations with files. Archives are tar streams as package archive makes and
// takes them.
const (
	FilesPack   FilesOp = "pack"   // Path, a file or directory, leaves the guest as an archive
	FilesUnpack FilesOp = "unpack" // an archive comes in and is put at Path, as archive.Extract says
	FilesRead   FilesOp = "read"   // the contents of the file Path leave the guest
	FilesWrite  FilesOp = "write"  // what comes in becomes the file Path, whole or not at all
)

// Files is the payload of ChannelFiles. A relative Path counts from root's home.
type Files struct {
	Op   FilesOp `json:"op"`
	Path string  `json:"path"`
	Mode uint32  `json:"mode,omitempty"` // FilesWrite: permissions of a file that is new; 0: 0644
	// Follow: FilesPack follows Path itself if it is a symbolic link.
	Follow bool `json:"follow,omitempty"`
}

// Folder is the payload of ChannelFolder.
type Folder struct {
	Path     string // where to mount it; made if it is missing
	ReadOnly bool
}

const (
	// FolderMessageHead is what a message on a ChannelFolder may have beside data, in bytes.
	FolderMessageHead = 4 << 10
	// MaxFolderMessage is the longest message, in bytes.
	MaxFolderMessage = 256<<10 + FolderMessageHead
)

// ExitStatus is how a command ended.
type ExitStatus struct {
	// Code is the exit code, or 128 plus the signal's number if a signal ended
	// the command.
	Code int
	// Signal is the name of the signal that ended the command, without "SIG".
	// It is empty if the command exited by itself.
	Signal string
}

// Scope tells from where a guest's listener can be reached.
type Scope string

// The scopes, from narrow to wide.
const (
	ScopeLoopback Scope = "loopback" // only from within the guest
	ScopeNetwork  Scope = "network"  // on the guest's network address too
)

// Listeners are the guest's TCP listeners, and the UDP sockets that take datagrams
// from anybody: the widest scope of each port.
type Listeners struct {
	TCP map[uint16]Scope
	UDP map[uint16]Scope
}
