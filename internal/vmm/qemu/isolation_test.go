package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// QEMU has no capability and no network but a dead loopback interface.
func TestIsolation(t *testing.T) {
	m := startMachine(t, testConfig(t))
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(status), line) {
			t.Errorf("QEMU's status has no %q", line)
		}
	}
	for _, space := range []string{"user", "net"} {
		ours, err := os.Readlink("/proc/self/ns/" + space)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", m.PID(), space))
		if err != nil {
			t.Fatal(err)
		}
		if ours == theirs {
			t.Errorf("QEMU is in our %s namespace", space)
		}
	}
	routes, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", m.PID()))
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(routes), "\n"); lines != 3 {
		t.Errorf("QEMU sees interfaces: %s", routes)
	}
}

// Where files can only be opened with root's capabilities, QEMU keeps them.
func TestIsolationGivenUp(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has capabilities to lose")
	}
	config := testConfig(t)
	// A kernel that only another user may read.
	private := filepath.Join(t.TempDir(), "vmlinux")
	contents, err := os.ReadFile(config.Kernel)
	if err == nil {
		err = os.WriteFile(private, contents, 0o600)
	}
	if err == nil {
		err = os.Chown(private, testUser, testUser)
	}
	if err != nil {
		t.Fatal(err)
	}
	config.Kernel = private
	m, _ := bootMachine(t, config)
	ours, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	if theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", m.PID())); err != nil || theirs != ours {
		t.Error("QEMU is isolated all the same:", theirs, err)
	}
}

func TestMayNotIsolate(t *testing.T) {
	tests := map[error]bool{
		&fs.PathError{Op: "fork/exec", Path: "/bin/qemu", Err: syscall.EPERM}:  true,
		&fs.PathError{Op: "fork/exec", Path: "/bin/qemu", Err: syscall.ENOSPC}: true,
		&fs.PathError{Op: "fork/exec", Path: "/bin/qemu", Err: syscall.ENOENT}: false,
		&refusedError{errors.New("Could not open 'disk': Permission denied")}:  true,
		&refusedError{errors.New("Image is not in qcow2 format")}:              false,
	}
	for err, want := range tests {
		if got := mayNotIsolate(err); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// The child ends with the thread that started it, which startProcess keeps: not before.
func TestProcess(t *testing.T) {
	p, err := startProcess(exec.Command("cat", "/dev/zero"), false)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.done:
		t.Fatal("the child ended by itself:", p.err)
	default:
	}
	if sid, err := unix.Getsid(p.id); err != nil || sid != p.id {
		t.Error("the child is in the session", sid, err)
	}
	if err := p.kill(); err != nil {
		t.Error(err)
	}
	if err := p.kill(); err != nil {
		t.Error("the second time:", err)
	}
	if p.err == nil {
		t.Error("a killed child ended in order")
	}
	if _, err := startProcess(exec.Command("/no/such/program"), false); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
