package qemu

import (
	"context"

	"github.com/smolvm/smolvm/internal/vmm"
)

// UserSpace boots a guest with no disk and no network until its first program runs,
// and ends it. It is the least that a start can take, to measure starts against.
func (d *Driver) UserSpace(ctx context.Context, kernel, initrd string, accelerator vmm.Accelerator) error {
	return d.boot(ctx, kernel, initrd, accelerator)
}
