package guest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const helperVariable = "SMOLVM_GUEST_TEST_HELPER"

// helpers are what tests run in a process of their own: as PID 1, with mounts that
// nobody else sees. Each returns what went wrong.
func helpers() map[string]func() error {
	return map[string]func() error{
		"reaper":        helpReaper,
		"end processes": helpEndProcesses,
		"mounts":        helpMounts,
		"signals":       helpSignals,
		"launch":        helpLaunch,
	}
}

func TestMain(m *testing.M) {
	HelperMain()
	name, ok := os.LookupEnv(helperVariable)
	if !ok {
		os.Exit(m.Run())
	}
	os.Unsetenv(helperVariable)
	if err := help(name); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// help runs a helper once its own mounts are private and its /proc is right.
func help(name string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return helpers()[name]()
}

// runHelper runs a helper as PID 1 of its own PID namespace, with its own mounts and
// network.
func runHelper(t *testing.T, name string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), helperVariable+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
}
