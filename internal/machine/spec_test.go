package machine

import (
	"errors"
	"testing"

	"github.com/smolvm/smolvm/internal/store"
)

func TestSpecDefaults(t *testing.T) {
	spec, err := Spec{}.complete()
	if err != nil {
		t.Fatal(err)
	}
	if spec.Image != "debian" || spec.MemoryMiB != 512 || spec.CPUs != 1 || spec.Network != NetworkAuto {
		t.Errorf("defaults: %+v", spec)
	}
	if err := store.CheckName(spec.Name); err != nil {
		t.Error(err)
	}
}

func TestSpecRefused(t *testing.T) {
	for name, spec := range map[string]Spec{
		"little memory":    {MemoryMiB: minMemoryMiB - 1},
		"too much memory":  {MemoryMiB: maxMemoryMiB + 1},
		"no processor":     {CPUs: -1},
		"many processors":  {CPUs: maxCPUs + 1},
		"negative disk":    {DiskSize: -1},
		"too much disk":    {DiskSize: maxDiskSize + 1},
		"no network mode":  {Network: "wireless"},
		"no value":         {Env: []string{"A"}},
		"no variable":      {Env: []string{"=b"}},
		"NUL in variables": {Env: []string{"A=\x00"}},
	} {
		if got, err := spec.complete(); !errors.Is(err, ErrInvalidOption) {
			t.Errorf("%s: got %+v, %v; want ErrInvalidOption", name, got, err)
		}
	}
}

// TestNotRunningMessage holds a message that is promised to callers.
func TestNotRunningMessage(t *testing.T) {
	for _, status := range []Status{StatusCreated, StatusStopped} {
		err := error(&NotRunningError{Op: "expose port", Status: status})
		if err.Error() != "cannot expose port: VM is stopped" || !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: %v", status, err)
		}
	}
}
