package guest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// openPort waits for the virtio-serial port of the guest channel and opens it.
//
// The file blocks, on purpose: while no host is connected the port polls as hung up,
// and only a write that blocks waits for one without looking again and again.
func openPort(ctx context.Context, sys, dev string) (*os.File, error) {
	name, err := awaitDevice(ctx, func() (string, error) { return findPort(sys, guestapi.ChannelName) })
	if err != nil {
		return nil, fmt.Errorf("find guest channel: %w", err)
	}
	fd, err := unix.Open(filepath.Join(dev, name), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open guest channel: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// findPort returns the device name of the virtio-serial port with a name.
func findPort(sys, name string) (string, error) {
	files, err := filepath.Glob(filepath.Join(sys, "class/virtio-ports/*/name"))
	if err != nil {
		return "", err
	}
	for _, file := range files {
		// A port that has just gone is none.
		if data, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(data)) == name {
			return filepath.Base(filepath.Dir(file)), nil
		}
	}
	return "", os.ErrNotExist
}
