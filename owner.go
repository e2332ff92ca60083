package smolvm

import (
	"context"

	"github.com/smolvm/smolvm/internal/control"
)

// Own is the life of a VM's background owner, as [Background] starts it: the program that
// the command line "PROGRAM own NAME" runs. It returns when the VM has ended, or ctx has,
// which stops the VM. It logs to the VM's [OwnerLog]. Only the process that Background started
// may call it. Of the options [Version] alone counts.
func Own(ctx context.Context, name string, opts ...Option) error {
	c := newConfig(opts)
	return control.Own(ctx, c.host, name)
}
