package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestLockOutlivesBuilder shows that a build counts as under way while one of its
// processes lives, even if the one that began it is dead.
func TestLockOutlivesBuilder(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, lockFile)
	held, err := lock(t.Context(), path, exclusive, nil)
	if err != nil {
		t.Fatal(err)
	}
	job := &Job{Dir: dir, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), lock: held}
	ctx, cancel := context.WithCancel(t.Context())
	started, ended := make(chan struct{}), make(chan error)
	go func() {
		_, err := job.run(ctx, command{
			name: "/bin/sh",
			args: []string{"-c", "echo started >&2; exec sleep 1000"},
			line: func(string) { close(started) },
		})
		ended <- err
	}()
	<-started
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(t.Context(), 3*lockRetry)
	defer stop()
	busy := false
	if _, err := lock(short, path, exclusive, func() { busy = true }); !errors.Is(err, context.DeadlineExceeded) || !busy {
		t.Errorf("lock while a child lives: %v, busy %v", err, busy)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("child: %v", err)
	}
	again, err := lock(t.Context(), path, exclusive, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// newJob returns a job in a directory of its own, under a lock, for as long as the test.
func newJob(t *testing.T) *Job {
	t.Helper()
	dir := t.TempDir()
	held, err := lock(t.Context(), filepath.Join(dir, lockFile), exclusive, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { held.Close() })
	return &Job{Dir: dir, Log: slog.New(slog.DiscardHandler), lock: held}
}

func TestRunFails(t *testing.T) {
	job := newJob(t)
	script := `for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do echo "line $i" >&2; done; printf %1000s x >&2; printf no-newline >&2; exit 3`
	_, err := job.run(t.Context(), command{name: "/bin/sh", args: []string{"-c", script}})
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Fatalf("got %v", err)
	}
	text := err.Error()
	if !strings.Contains(text, "run sh: ") || !strings.Contains(text, "line 13") || strings.Contains(text, "line 1\n") || len(text) > tailLines*(maxLine+2)+100 {
		t.Errorf("error: %s", text)
	}
	out, err := job.run(t.Context(), command{name: "/bin/sh", args: []string{"-c", "echo out; pwd"}})
	if err != nil || string(out) != "out\n"+job.Dir+"\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestFindTools(t *testing.T) {
	paths, err := findTools(tool{"sh", "dash"})
	if err != nil || !filepath.IsAbs(paths["sh"]) {
		t.Errorf("got %v, %v", paths, err)
	}
	_, err = findTools(tool{"sh", "dash"}, tool{"no-such-one", "package-one"}, tool{"no-such-two", "package-two"})
	if !errors.Is(err, ErrHost) || !strings.HasSuffix(err.Error(), "missing programs: no-such-one, no-such-two; run: sudo apt-get install package-one package-two") {
		t.Errorf("got %v", err)
	}
}

// TestIsolated shows that an isolated program takes its children with it, whatever
// they do against it, and that a program that is not isolated does not.
func TestIsolated(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make namespaces without a user namespace")
	}
	job := newJob(t)
	for _, isolated := range []bool{false, true} {
		marker := fmt.Sprintf("1000.%d", os.Getpid())
		script := `setsid sh -c 'trap "" TERM HUP; exec sleep ` + marker + `' </dev/null >/dev/null 2>&1 & until pgrep -f '^sleep ` + marker + `$' >/dev/null; do :; done`
		if _, err := job.run(t.Context(), command{name: "/bin/sh", args: []string{"-c", script}, isolated: isolated}); err != nil {
			t.Fatal(err)
		}
		pids := sleepers(t, marker)
		if isolated && len(pids) != 0 {
			t.Errorf("%d children outlived the isolated program", len(pids))
		}
		if !isolated && len(pids) != 1 {
			t.Errorf("%d children outlived the program, 1 expected: the test tests nothing", len(pids))
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			waitFor(t, "child ends", func() bool { return !alive(pid) })
		}
	}
}

// sleepers finds the processes "sleep MARKER".
func sleepers(t *testing.T, marker string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil || string(data) != "sleep\x00"+marker+"\x00" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil && alive(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// An unprivileged program has the files that it is given, and no others of root's.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test must run as root: who is not has nothing to give up")
	}
	job := newJob(t)
	secret, given := filepath.Join(job.Dir, "secret"), filepath.Join(job.Dir, "given")
	for path, mode := range map[string]os.FileMode{secret: 0o600, given: 0o666} {
		if err := errors.Join(os.WriteFile(path, []byte(filepath.Base(path)), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.Open(given)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for unprivileged, want := range map[bool]string{false: "0 secret given", true: "65534  given"} {
		out, err := job.run(t.Context(), command{
			name: "/bin/sh", files: []*os.File{file}, unprivileged: unprivileged,
			args: []string{"-c", `echo "$(id -u) $(cat "$0" 2>/dev/null) $(cat ` + fileOf(0) + `)"; echo >>` + fileOf(0), secret},
		})
		if err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("unprivileged %v: %q, %v", unprivileged, out, err)
		}
		if err := os.Truncate(given, int64(len("given"))); err != nil {
			t.Fatal(err)
		}
	}
}
