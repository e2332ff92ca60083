package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/smolvm/smolvm"
)

// TestMainOfProgram: a main process of a VM that this program owns.
func TestMainOfProgram(t *testing.T) {
	f := newFixture(t)
	vm := f.launch(smolvm.Main("sh", "-c", "echo said; kill -9 $$"), smolvm.Labels(map[string]string{"of": "program"}))
	main, err := vm.WaitMain(t.Context())
	if err != nil || main == nil || main.Running || main.ExitCode == nil || *main.ExitCode != 137 || main.Signal != "KILL" {
		t.Fatalf("got %+v, %v", main, err)
	}
	wantStatus(t, vm, smolvm.StatusStopped)
	if i := info(t, vm); i.Labels["of"] != "program" || *i.Main.ExitCode != 137 || i.Main.Finished.Before(i.Main.Started) {
		t.Errorf("got %+v", i)
	}
	// The next start runs it again.
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again, err := vm.WaitMain(t.Context()); err != nil || *again.ExitCode != 137 || !again.Started.After(main.Started) {
		t.Errorf("got %+v, %v", again, err)
	}

	// By itself an image's command is not run, and this one has none.
	for name, opts := range map[string][]smolvm.Option{"none": nil, "image's": {smolvm.ImageCommand()}} {
		plain := f.launch(opts...)
		if i := info(t, plain); i.Main != nil || i.Status != smolvm.StatusRunning {
			t.Errorf("%s: %+v", name, i.Main)
		}
		if err := plain.Stop(t.Context(), smolvm.Grace(0)); err != nil {
			t.Error(err)
		}
		if main, err := plain.WaitMain(t.Context()); err != nil || main != nil {
			t.Errorf("%s: %+v, %v", name, main, err)
		}
		if err := plain.Close(); err != nil {
			t.Error(err)
		}
	}

	var start *smolvm.StartError
	_, err = smolvm.Launch(t.Context(), append(f.opts[:len(f.opts):len(f.opts)], smolvm.ImageCommand("no-such-program"))...)
	if !errors.As(err, &start) || !start.NotFound || start.Program != "no-such-program" {
		t.Errorf("got %v", err)
	}
	if vms, err := smolvm.List(t.Context(), f.opts...); err != nil || len(vms) != 1 {
		t.Errorf("left: %+v, %v", vms, err)
	}
}

// TestRevival: a VM whose monitor was killed comes back, to the program that owns it, until somebody
// stops it.
func TestRevival(t *testing.T) {
	f := newFixture(t)
	vm := f.launch(smolvm.Restart(smolvm.RestartAlways), smolvm.Memory(128))
	const deaths = 4
	for n := range deaths {
		before := info(t, vm)
		kill(t, before.VMM.PID)
		eventually(t, "the VM is back", func() error {
			_, err := vm.Run(t.Context(), "true")
			if now := info(t, vm); err == nil && now.VMM.PID == before.VMM.PID {
				err = fmt.Errorf("after death %d it is still %+v", n+1, now.VMM)
			}
			return err
		})
	}
	// By now it takes its time before it comes back.
	kill(t, info(t, vm).VMM.PID)
	eventually(t, "the VM has ended", func() error {
		if now := info(t, vm); now.Status != smolvm.StatusStarting {
			return fmt.Errorf("it is %s", now.Status)
		}
		return nil
	})
	var stopped *smolvm.NotRunningError
	if _, err := vm.ExposeLocal(t.Context(), 8000); !errors.As(err, &stopped) || stopped.Status != smolvm.StatusStarting {
		t.Errorf("got %v", err)
	}
	if _, err := vm.Snapshot(t.Context(), "meanwhile"); err != nil {
		t.Errorf("a copy meanwhile: %v", err)
	} else if err := smolvm.RemoveSnapshot(t.Context(), "meanwhile", f.opts...); err != nil {
		t.Error(err)
	}
	began := time.Now()
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := vm.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, vm, smolvm.StatusStopped)
	t.Logf("it was stopped in %v", time.Since(began))
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, vm, "true")
}
