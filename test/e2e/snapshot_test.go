package e2e

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/smolvm/smolvm"
)

// A suspended VM takes neither process nor port, and goes on where it was.
func TestSuspend(t *testing.T) {
	f := newFixture(t)
	f.createBackground("web")
	vm, err := smolvm.Open(t.Context(), "web", f.background()...)
	if err != nil {
		t.Fatal(err)
	}
	f.closeAtEnd(vm)
	if err := vm.Suspend(t.Context()); !errors.Is(err, smolvm.ErrNotRunning) {
		t.Errorf("one that never ran: %v", err)
	}
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	port := serveCount(t, vm)
	wantCount(t, port, 1)
	tunnel := expose(t, vm, 8000, 0, smolvm.HostPort(freePort(t)), smolvm.Transport(smolvm.SSHTunnel))
	same := "cat /proc/sys/kernel/random/boot_id /etc/machine-id; pgrep -f '[c]ount.py'"
	before := run(t, vm, same)
	key := hostKeyOf(t, vm)
	for round, change := range []func() error{
		func() error { return nil },
		func() error { return vm.Rename(t.Context(), "other") },
		// The slot that it had is taken when it comes back.
		func() error { f.launch(smolvm.Memory(256)); return nil },
	} {
		// As if the host had been off for an hour.
		run(t, vm, "date -s '1 hour ago'")
		if round == 1 {
			if err := vm.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		open, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(tunnel)))
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		for range 2 {
			if err := vm.Suspend(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if status, err := vm.Status(t.Context()); err != nil || status != smolvm.StatusSuspended {
			t.Errorf("it is %s, %v", status, err)
		}
		wantRefused(t, port)
		wantRefused(t, tunnel)
		var stopped *smolvm.NotRunningError
		if _, err := vm.Run(t.Context(), "true"); !errors.As(err, &stopped) || stopped.Status != smolvm.StatusSuspended {
			t.Errorf("a command says %v", err)
		}
		if round == 0 {
			eventually(t, "no process is left", func() error {
				if left := monitors(t); len(left) > 0 {
					return errors.New(strings.Join(left, ", "))
				}
				return nil
			})
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		start := vm.Start
		if round == 2 {
			start = vm.Resume
		}
		if err := start(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantOrigin(t, vm, smolvm.FromSaved, "")
		wantClock(t, vm)
		wantCount(t, port, round+2)
		if after := run(t, vm, same); after != before {
			t.Errorf("it is not what it was: %q, not %q", after, before)
		}
		if got := strings.TrimSpace(run(t, vm, "hostname")); got != vm.Name() {
			t.Errorf("%s calls itself %s", vm.Name(), got)
		}
		run(t, vm, "ping -c 1 -W 5 $(ip route | awk '/default/{print $3}')")
	}
	if hostKeyOf(t, vm) != key {
		t.Error("its SSH host key is another")
	}
	if left, _ := filepath.Glob(f.dirOf(vm) + "/saved*"); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
	f.deleteAtEnd("other")
}

// dirOf is a VM's directory.
func (f *fixture) dirOf(vm *smolvm.VM) string { return filepath.Join(f.dir, "vms", vm.Name()) }

func hostKeyOf(t *testing.T, vm *smolvm.VM) string {
	t.Helper()
	access, err := vm.SSH(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, key, _ := strings.Cut(string(read(t, access.KnownHostsFile)), " ")
	return key
}

// What a VM was saved as is damaged: it does not go on, and loses nothing before somebody says so.
func TestCannotResume(t *testing.T) {
	f := newFixture(t)
	vm := f.launch(smolvm.Memory(256), smolvm.Keep(), smolvm.Name("web"))
	f.deleteAtEnd("web")
	run(t, vm, "echo kept >/root/note; sync")
	if err := vm.Suspend(t.Context()); err != nil {
		t.Fatal(err)
	}
	memory, err := filepath.Glob(f.dirOf(vm) + "/saved-*/memory")
	if err != nil || len(memory) != 1 {
		t.Fatal(memory, err)
	}
	now := time.Now()
	if err := os.Chtimes(memory[0], now, now); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := vm.Start(t.Context())
		if !errors.Is(err, smolvm.ErrCannotResume) || !strings.Contains(err.Error(), "--discard-memory web") {
			t.Errorf("start: %v", err)
		}
		if status, err := vm.Status(t.Context()); err != nil || status != smolvm.StatusSuspended {
			t.Errorf("it is %s, %v", status, err)
		}
	}
	// What prune removes is what is of no use.
	if pruned, err := smolvm.Prune(t.Context(), smolvm.PruneOptions{KeepImages: true}, f.opts...); err != nil || len(pruned) > 0 {
		t.Errorf("pruned are %v, %v", pruned, err)
	}
	cold, err := smolvm.Open(t.Context(), "web", f.with(smolvm.DiscardMemory())...)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	f.closeAtEnd(cold)
	if err := cold.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantOrigin(t, cold, smolvm.FromBoot, "a disk that was written to")
	if got := strings.TrimSpace(run(t, cold, "cat /root/note")); got != "kept" {
		t.Errorf("the note is %q", got)
	}
	if left, _ := filepath.Glob(f.dirOf(cold) + "/saved*"); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
}

// Snapshots of a VM that runs, that is suspended and that is stopped are kept, restored into new
// VMs and into the VM, which may be gone meanwhile.
func TestSnapshots(t *testing.T) {
	f := newFixture(t)
	vm := f.launch(smolvm.Memory(256), smolvm.Keep(), smolvm.Name("web"), smolvm.Env("A=1"))
	f.deleteAtEnd("web")
	port := serveCount(t, vm)
	note := func(vm *smolvm.VM, text string) {
		t.Helper()
		run(t, vm, "echo "+text+" >/root/note; sync")
	}
	wantNote := func(vm *smolvm.VM, want string) {
		t.Helper()
		if got := strings.TrimSpace(run(t, vm, "cat /root/note")); got != want {
			t.Errorf("the note of %s is %q, not %q", vm.Name(), got, want)
		}
	}
	take := func(name string, running bool) {
		t.Helper()
		s, err := vm.Snapshot(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if s.Name != name || s.VM != "web" || s.Running != running || s.MemoryMiB != 256 || s.Size == 0 {
			t.Errorf("snapshot %+v", s)
		}
	}
	note(vm, "one")
	wantCount(t, port, 1)
	take("one", true)
	if _, err := vm.Snapshot(t.Context(), "one"); !errors.Is(err, smolvm.ErrSnapshotExists) {
		t.Errorf("the same name: %v", err)
	}
	if _, err := vm.Snapshot(t.Context(), "../one"); !errors.Is(err, smolvm.ErrInvalidName) {
		t.Errorf("no name: %v", err)
	}
	note(vm, "two")
	wantCount(t, port, 2)
	if err := vm.Suspend(t.Context()); err != nil {
		t.Fatal(err)
	}
	take("two", true)
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantCount(t, port, 3)
	note(vm, "three")
	if err := vm.Revert(t.Context(), "one"); !errors.Is(err, smolvm.ErrRunning) {
		t.Errorf("while it runs: %v", err)
	}
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	take("three", false)
	if err := errors.Join(vm.UnsetEnv(t.Context(), "A"), vm.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	wantNote(vm, "three")
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}

	// Back to the first.
	if err := vm.Revert(t.Context(), "none"); !errors.Is(err, smolvm.ErrSnapshotNotFound) {
		t.Errorf("one that there is not: %v", err)
	}
	if err := vm.Revert(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantOrigin(t, vm, smolvm.FromSaved, "")
	wantNote(vm, "one")
	wantCount(t, port, 2)
	if got := strings.TrimSpace(run(t, vm, "echo $A")); got != "1" {
		t.Errorf("A is %q", got)
	}
	if err := errors.Join(vm.Delete(t.Context()), vm.Close()); err != nil {
		t.Fatal(err)
	}

	// The others, without the VM.
	for name, want := range map[string]smolvm.Origin{"two": smolvm.FromSaved, "three": smolvm.FromBoot} {
		vm, err := smolvm.Restore(t.Context(), name, f.opts...)
		if err != nil {
			t.Fatal(err)
		}
		wantOrigin(t, vm, want, "")
		wantNote(vm, name)
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := smolvm.Restore(t.Context(), "none", f.opts...); !errors.Is(err, smolvm.ErrSnapshotNotFound) {
		t.Errorf("one that there is not: %v", err)
	}
	snapshots, err := smolvm.Snapshots(t.Context(), f.opts...)
	if err != nil || len(snapshots) != 3 {
		t.Errorf("there are %v, %v", snapshots, err)
	}
	for _, s := range snapshots {
		if err := smolvm.RemoveSnapshot(t.Context(), s.Name, f.opts...); err != nil {
			t.Error(err)
		}
	}
	if err := smolvm.RemoveSnapshot(t.Context(), "one", f.opts...); !errors.Is(err, smolvm.ErrSnapshotNotFound) {
		t.Errorf("again: %v", err)
	}
	f.wantNoLayers()
}

// However a VM reaches the network, it can be suspended and forked.
func TestSuspendNetworks(t *testing.T) {
	f := newFixture(t)
	for _, mode := range []smolvm.NetworkMode{smolvm.NetworkUser, smolvm.NetworkNone} {
		vm := f.launch(smolvm.Memory(256), smolvm.Network(mode))
		tunnel := smolvm.Transport(smolvm.SSHTunnel)
		serve(t, vm, 8000, "page")
		port := expose(t, vm, 8000, 0, tunnel)
		if err := errors.Join(vm.Suspend(t.Context()), vm.Start(t.Context())); err != nil {
			t.Fatal(err)
		}
		wantOrigin(t, vm, smolvm.FromSaved, "")
		wantPage(t, port, "page")
		copies, err := vm.Fork(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		wantPage(t, expose(t, copies[0], 8000, 0, tunnel), "page")
		if info, err := copies[0].Info(t.Context()); err != nil || info.Network.Mode != mode {
			t.Errorf("a copy of one with network %s has %s, %v", mode, info.Network.Mode, err)
		}
		if err := errors.Join(copies[0].Close(), vm.Close()); err != nil {
			t.Error(err)
		}
	}
}
