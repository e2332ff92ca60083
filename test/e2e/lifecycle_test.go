package e2e

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smolvm/smolvm"
)

// TestExposeRefused checks every way in which exposing must fail, and that it
// changes nothing.
func TestExposeRefused(t *testing.T) {
	f := newFixture(t)
	vm, err := smolvm.New(t.Context(), f.opts...)
	if err != nil {
		t.Fatal(err)
	}
	f.closeAtEnd(vm)
	wantStopped := func() {
		t.Helper()
		before := hostState(t)
		_, err := vm.ExposeLocal(t.Context(), 8000, smolvm.HostPort(8000))
		if !errors.Is(err, smolvm.ErrNotRunning) || err.Error() != "cannot expose port: VM is stopped" {
			t.Errorf("expose on a stopped VM: %v", err)
		}
		wantState(t, before)
	}
	wantStopped()
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The first one may add what all forwards share.
	keep := expose(t, vm, 8000, 0)
	before := hostState(t)
	for _, port := range []int{0, -1, 65536, 99999} {
		_, err := vm.ExposeLocal(t.Context(), port)
		wantPortError(t, err, "guest_port must be 1-65535")
		_, err = vm.ExposeLocal(t.Context(), 8000, smolvm.HostPort(port))
		wantPortError(t, err, "host_port must be 1-65535")
		wantPortError(t, vm.UnexposeLocal(t.Context(), 8000, port), "guest_port must be 1-65535")
		wantPortError(t, vm.WaitPort(t.Context(), port), "guest_port must be 1-65535")
	}
	wantState(t, before)
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, keep)
	wantStopped()
}

func wantPortError(t *testing.T, err error, want string) {
	t.Helper()
	var port *smolvm.PortError
	if !errors.Is(err, smolvm.ErrInvalidPort) || !errors.As(err, &port) || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
}

// TestLife follows a VM that is kept from its making to its end, across handles.
func TestLife(t *testing.T) {
	f := newFixture(t)
	opts := append(f.opts, smolvm.Name("kept"), smolvm.Keep(), smolvm.Env("GREETING=hello there"))
	vm, err := smolvm.New(t.Context(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	f.closeAtEnd(vm)
	wantStatus(t, vm, smolvm.StatusCreated)
	if _, err := smolvm.New(t.Context(), opts...); !errors.Is(err, smolvm.ErrExists) {
		t.Errorf("New with a name that is taken: %v, want ErrExists", err)
	}
	if _, err := vm.Run(t.Context(), "true"); !errors.Is(err, smolvm.ErrNotRunning) {
		t.Errorf("Run before Start: %v, want ErrNotRunning", err)
	}
	for range 2 {
		if err := vm.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wantStatus(t, vm, smolvm.StatusRunning)
	if got := run(t, vm, `echo "$GREETING"; echo kept >/root/note`); got != "hello there\n" {
		t.Errorf("environment: %q", got)
	}
	serve(t, vm, 8000, "again")
	port := expose(t, vm, 8000, 0)

	// Another handle deals with the VM through its owner.
	other, err := smolvm.Open(t.Context(), "kept", f.opts...)
	if err != nil {
		t.Fatal(err)
	}
	wantStatus(t, other, smolvm.StatusRunning)
	if err := other.Start(t.Context()); err != nil {
		t.Error(err)
	}
	if got := run(t, other, "cat /root/note"); got != "kept\n" {
		t.Errorf("through the other handle: %q", got)
	}
	if diff := cmp.Diff(vm.Forwards(), other.Forwards()); diff != "" {
		t.Errorf("forwards through the other handle (+): %s", diff)
	}

	for range 2 {
		if err := vm.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wantStatus(t, vm, smolvm.StatusStopped)
	if err := errors.Join(vm.Close(), vm.Close()); err != nil {
		t.Fatal(err)
	}

	// The other handle takes over: the disk is as it was, and so is the port.
	if err := other.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.closeAtEnd(other)
	if got := run(t, other, "cat /root/note"); got != "kept\n" {
		t.Errorf("the disk lost its note: %q", got)
	}
	run(t, other, "cd /srv/8000 && python3 -m http.server 8000 &")
	waitPort(t, other, 8000)
	wantPage(t, port, "again")

	for range 2 {
		if err := other.Delete(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wantStatus(t, other, smolvm.StatusDeleted)
	if _, err := smolvm.Open(t.Context(), "kept", f.opts...); !errors.Is(err, smolvm.ErrNotFound) {
		t.Errorf("Open of a deleted VM: %v, want ErrNotFound", err)
	}
	if _, err := other.Run(t.Context(), "true"); !errors.Is(err, smolvm.ErrDeleted) {
		t.Errorf("Run in a deleted VM: %v, want ErrDeleted", err)
	}
}

func wantStatus(t *testing.T, vm *smolvm.VM, want smolvm.Status) {
	t.Helper()
	if got, err := vm.Status(t.Context()); err != nil || got != want {
		t.Errorf("status of %s: %s, %v; want %s", vm.Name(), got, err, want)
	}
}

// TestCloseAfterCancel closes a VM whose context ended long ago, and cancels a boot
// in the middle.
func TestCloseAfterCancel(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	vm, err := smolvm.Launch(ctx, f.opts...)
	if err != nil {
		t.Fatal(err)
	}
	port := expose(t, vm, 8000, 0)
	cancel()
	if _, err := vm.Run(ctx, "true"); !errors.Is(err, context.Canceled) {
		t.Errorf("Run with a cancelled context: %v", err)
	}
	if err := errors.Join(vm.Close(), vm.Close()); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, vm, smolvm.StatusDeleted)
	wantRefused(t, port)

	vm, err = smolvm.New(t.Context(), f.opts...)
	if err != nil {
		t.Fatal(err)
	}
	f.closeAtEnd(vm)
	ctx, cancel = context.WithCancel(t.Context())
	started := make(chan error)
	go func() { started <- vm.Start(ctx) }()
	eventually(t, "the VM is on its way", func() error {
		info, err := vm.Info(t.Context())
		if err != nil {
			return err
		}
		_, err = os.Stat(info.Console)
		return err
	})
	cancel()
	if err := <-started; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Start: %v", err)
	}
	wantStatus(t, vm, smolvm.StatusStopped)
	if err := vm.Start(t.Context()); err != nil {
		t.Errorf("Start after a cancelled one: %v", err)
	}
}

// TestGuestEndsItself powers off from within, and wants all to be released as if
// the host had asked.
func TestGuestEndsItself(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	port := expose(t, vm, 8000, 0)
	info, err := vm.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// sysrq "o" is the guest kernel's own power-off; nobody is asked.
	_, _ = vm.Run(t.Context(), "echo o >/proc/sysrq-trigger; sleep 60")
	eventually(t, "the VM is stopped", func() error {
		if status, err := vm.Status(t.Context()); err != nil || status != smolvm.StatusStopped {
			return errors.Join(errors.New("status is "+string(status)), err)
		}
		return nil
	})
	wantRefused(t, port)
	if console, err := os.ReadFile(info.Console); err != nil || !strings.Contains(string(console), "smolvm-guest") {
		t.Errorf("console log: %v\n%s", err, console)
	}
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	serve(t, vm, 8000, "back")
	wantPage(t, port, "back")
}

func TestInvalidOptions(t *testing.T) {
	f := newFixture(t)
	for name, c := range map[string]struct {
		opt  smolvm.Option
		want error
	}{
		"name":        {smolvm.Name("Not_A_Label"), smolvm.ErrInvalidName},
		"memory":      {smolvm.Memory(-1), smolvm.ErrInvalidOption},
		"cpus":        {smolvm.CPUs(1000), smolvm.ErrInvalidOption},
		"disk":        {smolvm.DiskSize(1), smolvm.ErrInvalidOption},
		"environment": {smolvm.Env("no value"), smolvm.ErrInvalidOption},
		"network":     {smolvm.Network("bridge"), smolvm.ErrInvalidOption},
		"accelerator": {smolvm.Accelerate("magic"), smolvm.ErrInvalidOption},
		"image":       {smolvm.Image("no-such-image"), smolvm.ErrImageNotFound},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if vm, err := smolvm.New(ctx, append(f.opts, c.opt)...); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, %v; want %v", name, vm, err, c.want)
		}
		cancel()
	}
}

// TestForcedAccelerator asks for KVM, which is an error of its own kind where it does
// not work, and leaves nothing.
func TestForcedAccelerator(t *testing.T) {
	f := newFixture(t)
	info, err := f.launch().Info(t.Context())
	if err != nil || info.VMM.Reason == "" {
		t.Fatalf("accelerator %s, reason %q, %v", info.VMM.Accelerator, info.VMM.Reason, err)
	}
	if told := strings.Contains(f.log.String(), "guest code is emulated"); told != (info.VMM.Accelerator == smolvm.TCG) {
		t.Errorf("the guest runs by %s; the log says that it is emulated: %v", info.VMM.Accelerator, told)
	}
	vm, err := smolvm.Launch(t.Context(), append(f.opts, smolvm.Accelerate(smolvm.KVM))...)
	switch {
	case info.VMM.Accelerator == smolvm.KVM && err == nil:
		f.closeAtEnd(vm)
	case info.VMM.Accelerator == smolvm.TCG && !errors.Is(err, smolvm.ErrAccelerator):
		t.Errorf("KVM does not work here (%s), and forced: %v, want ErrAccelerator", info.VMM.Reason, err)
	case err != nil && info.VMM.Accelerator == smolvm.KVM:
		t.Error(err)
	}
}
