package machine

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strconv"
)

const diskFile = "disk.qcow2"

// createOverlay makes a qcow2 disk of size bytes at path that holds only what
// differs from base, a raw file system which must not change from then on.
func createOverlay(ctx context.Context, path, base string, size int64) error {
	cmd := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, path, strconv.FormatInt(size, 10))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("create disk with qemu-img (Debian package qemu-utils): %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}
