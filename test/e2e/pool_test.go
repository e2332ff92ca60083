package e2e

import (
	"errors"
	"fmt"
	"testing"

	"github.com/smolvm/smolvm"
	"github.com/smolvm/smolvm/internal/vmm"
)

func wantReady(t *testing.T, p *smolvm.Pool, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d VMs wait", want), func() error {
		if n := p.Ready(); n != want {
			return fmt.Errorf("%d wait", n)
		}
		return nil
	})
}

// A pool has VMs wait, gives them away, and puts others in their place.
func TestPool(t *testing.T) {
	f := newFixture(t)
	for what, opts := range map[string][]smolvm.Option{
		"a name": {smolvm.Name("web")}, "kept": {smolvm.Keep()}, "in the background": {smolvm.Background()},
	} {
		if _, err := smolvm.NewPool(1, f.with(opts...)...); !errors.Is(err, smolvm.ErrInvalidOption) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := smolvm.NewPool(0, f.opts...); !errors.Is(err, smolvm.ErrInvalidOption) {
		t.Errorf("none: %v", err)
	}
	p, err := smolvm.NewPool(2, f.with(smolvm.Memory(256), smolvm.Env("A=1"))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	wantReady(t, p, 2)
	get := func() *smolvm.VM {
		t.Helper()
		vm, err := p.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f.closeAtEnd(vm)
		if got := run(t, vm, "echo $A"); got != "1\n" {
			t.Errorf("A is %q", got)
		}
		wantClock(t, vm)
		return vm
	}
	first, second, third := get(), get(), get() // whether the third waited or not
	if first.Name() == second.Name() || run(t, first, "cat /proc/sys/kernel/random/uuid") == run(t, third, "cat /proc/sys/kernel/random/uuid") {
		t.Error("they are the same")
	}
	serve(t, first, 8000, "page")
	wantPage(t, expose(t, first, 8000, 0), "page")
	wantReady(t, p, 2)

	// One that ends while it waits is not given away.
	infos, err := smolvm.List(t.Context(), f.opts...)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		if info.Status == smolvm.StatusPaused {
			kill(t, info.VMM.PID)
			break
		}
	}
	get()
	get()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := p.Get(t.Context()); !errors.Is(err, smolvm.ErrPoolClosed) {
		t.Errorf("after the end: %v", err)
	}
	run(t, first, "true") // it is ours
}

// A pool that is closed while it starts VMs leaves none, and one that cannot start any says why
// when it is asked.
func TestPoolEnds(t *testing.T) {
	f := newFixture(t)
	p, err := smolvm.NewPool(3, f.with(smolvm.Memory(256))...)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "one is made", func() error {
		infos, err := smolvm.List(t.Context(), f.opts...)
		if err == nil && len(infos) == 0 {
			err = errors.New("none is")
		}
		return err
	})
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if infos, err := smolvm.List(t.Context(), f.opts...); err != nil || len(infos) != 0 {
		t.Errorf("left are %v, %v", infos, err)
	}
	broken, err := smolvm.NewPool(1, f.with(smolvm.Accelerate(smolvm.KVM))...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := broken.Get(t.Context()); !errors.Is(err, vmm.ErrAccelerator) {
		t.Errorf("without an accelerator: %v", err)
	}
	if err := broken.Close(); err != nil {
		t.Error(err)
	}
}
