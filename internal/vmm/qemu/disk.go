package qemu

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/smolvm/smolvm/internal/store"
)

const (
	// diskNode is what QEMU calls the disk that a machine starts with.
	diskNode = "disk"
	// diskDevice is what it calls the device that the guest has it as.
	diskDevice = "disk"
)

// blockNode describes a disk to QEMU.
type blockNode struct {
	Driver   string    `json:"driver"` // its format
	NodeName string    `json:"node-name"`
	File     blockFile `json:"file"`
	Discard  string    `json:"discard"`
	ReadOnly bool      `json:"read-only,omitempty"`
	// Backing is null if what the file's header says is not to be opened.
	Backing *json.RawMessage `json:"backing,omitempty"`
}

type blockFile struct {
	Driver   string `json:"driver"`
	Filename string `json:"filename"`
	AIO      string `json:"aio"`
}

// newBlockNode describes the qcow2 file at path.
//
// The host's page cache is used: the image below the disk is shared by all VMs,
// and is then read once. What the guest flushes is on the host's disk before it
// is told so, so a crash of the host loses nothing that the guest counted on.
// AIO by threads works with every filesystem and in every container. What the guest
// trims is given back to the host.
func newBlockNode(name, path string) (blockNode, error) {
	if !utf8.ValidString(path) {
		return blockNode{}, fmt.Errorf("QEMU cannot open a disk whose path %q is not UTF-8", path)
	}
	return blockNode{
		Driver: "qcow2", NodeName: name, Discard: "unmap",
		File: blockFile{Driver: "file", Filename: path, AIO: "threads"},
	}, nil
}

// diskArguments attaches a qcow2 file as the guest's disk.
func diskArguments(path string) ([]string, error) {
	if path == "" {
		return nil, nil
	}
	node, err := newBlockNode(diskNode, path)
	if err != nil {
		return nil, err
	}
	return attach(node, diskDevice)
}

// moreDisks attaches the disks that a guest has besides its own.
func moreDisks(disks []store.Disk) ([]string, error) {
	var args []string
	for i, d := range disks {
		name := fmt.Sprintf("disk%d", i+1)
		node, err := newBlockNode(name, d.Path)
		if err != nil {
			return nil, err
		}
		node.Driver, node.ReadOnly = d.Format, d.ReadOnly
		if d.Format == store.DiskQcow2 {
			// Who made it must not choose other files of this host for the guest.
			null := json.RawMessage("null")
			node.Backing = &null
		}
		if isDevice(d.Path) {
			node.File.Driver = "host_device"
		}
		one, err := attach(node, name)
		if err != nil {
			return nil, err
		}
		args = append(args, one...)
	}
	return args, nil
}

func isDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeDevice != 0
}

// attach makes a disk a device of the guest.
func attach(node blockNode, device string) ([]string, error) {
	// JSON, since a path may have commas in it.
	options, err := json.Marshal(node)
	if err != nil {
		return nil, fmt.Errorf("describe disk: %w", err)
	}
	return []string{"-blockdev", string(options), "-device", "virtio-blk-device,id=" + device + ",drive=" + node.NodeName}, nil
}

// OverlayDisk implements vmm.Machine.
func (m *machine) OverlayDisk(ctx context.Context, path string) error {
	present, err := m.activeDisk(ctx)
	if err != nil {
		return fmt.Errorf("put overlay on disk: %w", err)
	}
	node, err := newBlockNode(diskNode+"-"+strings.ToLower(rand.Text()[:12]), path)
	if err != nil {
		return fmt.Errorf("put overlay on disk: %w", err)
	}
	null := json.RawMessage("null")
	node.Backing = &null
	if err := m.monitor.execute(ctx, "blockdev-add", node, nil); err != nil {
		return fmt.Errorf("put overlay on disk: %w", err)
	}
	overlay := map[string]string{"node": present, "overlay": node.NodeName}
	if err := m.monitor.execute(ctx, "blockdev-snapshot", overlay, nil); err != nil {
		// It is of no use any more, and QEMU must not keep it open.
		_ = m.monitor.execute(context.WithoutCancel(ctx), "blockdev-del", map[string]string{"node-name": node.NodeName}, nil)
		return fmt.Errorf("put overlay on disk: %w", err)
	}
	return nil
}

// activeDisk returns what QEMU calls the file that the guest writes to.
func (m *machine) activeDisk(ctx context.Context) (name string, err error) {
	property := map[string]string{"path": "/machine/peripheral/" + diskDevice, "property": "drive"}
	err = m.monitor.execute(ctx, "qom-get", property, &name)
	return name, err
}
