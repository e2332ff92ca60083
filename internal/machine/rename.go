package machine

import (
	"context"
	"errors"
	"fmt"
)

// Rename gives a VM that does not run another name.
func (v *VM) Rename(ctx context.Context, name string) error {
	v.life.Lock()
	defer v.life.Unlock()
	claim, r, err := v.own(ctx)
	if err != nil {
		return fmt.Errorf("cannot rename VM: %w", err)
	}
	if r != nil || claim.Record().Run != nil {
		return errors.Join(fmt.Errorf("cannot rename VM: %w: stop it first", ErrRunning), v.disown())
	}
	if err := claim.Rename(ctx, name); err != nil {
		return errors.Join(fmt.Errorf("cannot rename VM: %w", err), v.disown())
	}
	v.mu.Lock()
	v.name = name
	v.mu.Unlock()
	return v.disown()
}
