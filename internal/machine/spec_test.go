package machine

import (
	"errors"
	"os"
	"slices"
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
		"no host folder":   {Shares: []SharedFolder{{Guest: "/a"}}},
		"no guest path":    {Shares: []SharedFolder{{Host: "/"}}},
		"relative path":    {Shares: []SharedFolder{{Host: "/", Guest: "a"}}},
		"NUL in a path":    {Shares: []SharedFolder{{Host: "/", Guest: "/a\x00"}}},
		"root":             {Shares: []SharedFolder{{Host: "/", Guest: "/a/.."}}},
		"devices":          {Shares: []SharedFolder{{Host: "/", Guest: "/a/../dev/shm"}}},
		"one path twice":   {Shares: []SharedFolder{{Host: "/", Guest: "/a"}, {Host: "/tmp", Guest: "//a/"}}},
		"many folders":     {Shares: make([]SharedFolder, maxFolders+1)},
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

func TestSpecShares(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	given := []SharedFolder{{Host: "sub/..", Guest: "/z/../b/c/"}, {Host: "/tmp/", Guest: "/b", ReadOnly: true}}
	spec, err := Spec{Shares: given}.complete()
	want := []SharedFolder{{Host: "/tmp", Guest: "/b", ReadOnly: true}, {Host: here, Guest: "/b/c"}}
	if err != nil || !slices.Equal(spec.Shares, want) {
		t.Errorf("got %+v, %v", spec.Shares, err)
	}
	if given[0].Host != "sub/.." {
		t.Error("what was given is changed")
	}
}
