// Package control lets every process of a user deal with a VM that one of them owns. The
// owner serves HTTP with JSON on a unix socket in the VM's directory; the others are its
// clients. A VM of this package is the same to its user either way.
//
// What is behind /v1 only grows: a field or a path is added, never changed or taken away. A
// server refuses a request that has a field it does not know, for it would not do what was
// asked; a client does not mind fields of an answer that it does not know.
package control

import (
	"errors"
	"fmt"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/machine"
)

// socketName is the socket in the VM's directory.
const socketName = "control.sock"

// apiVersion is the version that this program speaks. It is in every path and in every
// answer's headers.
const apiVersion = "1"

// The headers of every answer.
const (
	headerAPI     = "Smolvm-Api"
	headerVersion = "Smolvm-Version"
	headerPID     = "Smolvm-Pid"
)

// The paths.
const (
	pathVM            = "/v" + apiVersion + "/vm"
	pathStart         = pathVM + "/start"
	pathStop          = pathVM + "/stop"
	pathKill          = pathVM + "/kill"
	pathPause         = pathVM + "/pause"
	pathResume        = pathVM + "/resume"
	pathSuspend       = pathVM + "/suspend"
	pathCapture       = pathVM + "/capture"
	pathRevert        = pathVM + "/revert"
	pathDelete        = pathVM + "/delete"
	pathEnv           = pathVM + "/env"
	pathWait          = pathVM + "/wait"
	pathForwards      = "/v" + apiVersion + "/forwards"
	pathUnexpose      = pathForwards + "/remove"
	pathForwardEvents = pathForwards + "/events"
	pathWaitPort      = "/v" + apiVersion + "/ports/wait"
	pathCommands      = "/v" + apiVersion + "/commands"
	pathSignal        = pathCommands + "/{id}/signal"
	pathResize        = pathCommands + "/{id}/resize"
	pathFiles         = "/v" + apiVersion + "/files"
	pathDial          = "/v" + apiVersion + "/dial"
)

// The bodies of requests, and of answers, that have no type of their own elsewhere.
type (
	exposeRequest struct {
		Requests []forward.Request `json:"requests"`
	}
	unexposeRequest struct {
		Pairs []forward.Pair `json:"pairs"`
	}
	signalRequest struct {
		Signal int `json:"signal"` // its number on Linux
	}
	resizeRequest struct {
		Columns int `json:"columns"`
		Rows    int `json:"rows"`
	}
	captureRequest struct {
		Dir      string `json:"dir"`                 // of a draft in the VM's data directory
		DiskOnly bool   `json:"disk_only,omitempty"` // not its memory
	}
	revertRequest struct {
		Snapshot string `json:"snapshot"`
	}
	// waitAnswer tells what became of the main process, if the VM has one.
	waitAnswer struct {
		Main *machine.MainInfo `json:"main,omitempty"`
	}
	dialRequest struct {
		Address string `json:"address"`
	}
)

// maxRequest bounds the body of a request, in bytes.
const maxRequest = 8 << 20

var (
	// ErrVersion is wrapped by errors about an owner whose version of this API is another.
	ErrVersion = errors.New("the VM's owner is of another version of smolvm")

	// errNoOwner says that nobody serves the socket.
	errNoOwner = errors.New("the VM has no owner")
	// errOwnerLost says that the owner ended while it was asked.
	errOwnerLost = errors.New("the VM's owner ended")
)

// versionError explains an answer that is not of this version.
func versionError(vm, api, version, pid string) error {
	if api == "" {
		return fmt.Errorf("%w: what serves %s of VM %q does not speak its language", ErrVersion, socketName, vm)
	}
	return fmt.Errorf("%w: VM %q is run by smolvm %s (process %s), which speaks version %s of the control API, and this is version %s: "+
		"use that smolvm, or end the VM by ending that process", ErrVersion, vm, version, pid, api, apiVersion)
}
