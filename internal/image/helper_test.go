package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary runs itself with these in its environment to be another process.
const (
	roleVariable  = "SMOLVM_IMAGE_TEST_ROLE"
	dirVariable   = "SMOLVM_IMAGE_TEST_DIR"
	buildVariable = "SMOLVM_IMAGE_TEST_BUILDS"
)

// helper is the other process. It writes what it came to, one line each, to stdout.
func helper(role string) int {
	dir, builds := os.Getenv(dirVariable), os.Getenv(buildVariable)
	name := fakeName
	var s *Store
	switch role {
	case "build":
		s = newFakeStore(dir, builds, nil)
	case "hang":
		s = newFakeStore(dir, builds, hang)
	case "debian":
		name = Default
		s = NewStore(Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	case "mounted":
		return mounted(newFakeStore(dir, builds, nil))
	}
	img, err := s.Ensure(context.Background(), name, PullMissing, func(p Progress) { fmt.Println("stage", p.Stage) })
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println("image", img.ID)
	return 0
}

// hang runs a program that writes into the build directory for ever.
func hang(ctx context.Context, job *Job) error {
	_, err := job.run(ctx, command{
		name: "/bin/sh",
		args: []string{"-c", `echo "pid $$" >&2; while :; do echo x > "$0/busy"; done`, job.Dir},
		line: func(line string) { fmt.Println(line) },
	})
	return err
}

// process is a helper that runs.
type process struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

func startHelper(t *testing.T, role, dir, builds string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role, dirVariable+"="+dir, buildVariable+"="+builds)
	cmd.Stderr = os.Stderr
	if role == "mounted" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return &process{cmd: cmd, lines: bufio.NewScanner(stdout)}
}

// until reads lines until one has the prefix, and returns its rest.
func (p *process) until(t *testing.T, prefix string) string {
	t.Helper()
	for p.lines.Scan() {
		if rest, found := strings.CutPrefix(p.lines.Text(), prefix); found {
			return rest
		}
	}
	t.Fatalf("helper ended without a line %q: %v", prefix, p.lines.Err())
	return ""
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait()
}

// waitFor waits until the condition holds.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("timeout: %s", what)
		}
	}
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}

// mounted is TestMountedDebris in a process with mounts of its own.
func mounted(s *Store) int {
	debris := filepath.Join(s.dir, fakeName, buildPrefix+"dead")
	inner := filepath.Join(debris, "a b")
	precious := filepath.Join(inner, "precious")
	result := func() (string, error) {
		if err := os.MkdirAll(inner, 0o755); err != nil {
			return "", err
		}
		if err := unix.Mount("tmpfs", inner, "tmpfs", 0, ""); err != nil {
			return "", err
		}
		if err := os.WriteFile(precious, nil, 0o644); err != nil {
			return "", err
		}
		if _, err := s.Ensure(context.Background(), fakeName, PullMissing, nil); err != nil {
			return "", err
		}
		if _, err := os.Stat(precious); err != nil {
			return "", fmt.Errorf("removed through a mount: %w", err)
		}
		if err := unix.Unmount(inner, 0); err != nil {
			return "", err
		}
		s.sweep(context.Background(), filepath.Dir(debris))
		if _, err := os.Lstat(debris); !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("debris remains: %w", err)
		}
		return "mounted file kept, unmounted debris removed", nil
	}
	text, err := result()
	if err != nil {
		text = err.Error()
	}
	fmt.Println("result", text)
	if err != nil {
		return 1
	}
	return 0
}
