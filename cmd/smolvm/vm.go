package main

import (
	"context"
	"errors"

	"github.com/smolvm/smolvm"
)

// open opens a VM that exists. The caller owes a Close.
func (g *globals) open(ctx context.Context, name string) (*smolvm.VM, error) {
	opts, done := g.options()
	defer done()
	return smolvm.Open(ctx, name, opts...)
}

// with does something with a VM that exists.
func (g *globals) with(ctx context.Context, name string, do func(*smolvm.VM) error) error {
	vm, err := g.open(ctx, name)
	if err != nil {
		return err
	}
	err = do(vm)
	if closeErr := vm.Close(); closeErr != nil {
		err = errors.Join(err, closeErr)
	}
	return err
}

// list tells about all VMs.
func (g *globals) list(ctx context.Context) ([]smolvm.Info, error) {
	opts, done := g.options()
	defer done()
	return smolvm.List(ctx, opts...)
}
