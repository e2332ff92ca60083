package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/smolvm/smolvm"
	"github.com/smolvm/smolvm/internal/network/nettest"
)

// smolvmCmd is the real command on the fixture's data directory.
func (f *fixture) smolvmCmd(args ...string) *exec.Cmd {
	cmd := exec.Command(smolvmPath, args...)
	cmd.Env = append(os.Environ(), "SMOLVM_DATA_DIR="+f.dir)
	return cmd
}

// runToEnd runs the command and returns its output and exit code.
func (f *fixture) runToEnd(cmd *exec.Cmd) (stdout, stderr string, code int) {
	f.t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		f.t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// server is a smolvm run in the foreground that has exposed a port.
type server struct {
	cmd       *exec.Cmd
	port      int
	transport string
	stderr    *nettest.Log
	ended     chan error
}

var exposedLine = regexp.MustCompile(`^127\.0\.0\.1:(\d+) -> 8000  transport=(\w+)$`)

// startServer starts a command that ends in a smolvm run -p 8000, and waits until
// its page is there.
func (f *fixture) startServer(cmd *exec.Cmd) *server {
	f.t.Helper()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	s := &server{cmd: cmd, stderr: new(nettest.Log), ended: make(chan error, 1)}
	exposed := make(chan []string, 1)
	go func() {
		lines := bufio.NewScanner(io.TeeReader(stderr, s.stderr))
		for lines.Scan() {
			if m := exposedLine.FindStringSubmatch(lines.Text()); m != nil {
				exposed <- m
			}
		}
		s.ended <- cmd.Wait()
		close(s.ended)
	}()
	f.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-s.ended
		if f.t.Failed() {
			f.t.Log(s.stderr)
		}
	})
	select {
	case m := <-exposed:
		s.port, _ = strconv.Atoi(m[1])
		s.transport = m[2]
	case err := <-s.ended:
		f.t.Fatalf("%v ended: %v\n%s", cmd.Args, err, s.stderr)
	}
	eventually(f.t, "the page is there", func() error {
		page, err := get("127.0.0.1", s.port, "/")
		if err == nil && string(page) != "by command" {
			err = fmt.Errorf("page is %q", page)
		}
		return err
	})
	return s
}

// serveCommandOn is the rest of a smolvm run that serves a page of the guest on a port.
func serveCommandOn(publish string) []string {
	return []string{"-p", publish, "--", "sh", "-c",
		"mkdir /srv/www && cd /srv/www && printf 'by command' >index.html && exec python3 -m http.server 8000"}
}

func TestCommandRun(t *testing.T) {
	f := newFixture(t)
	for name, c := range map[string]struct {
		args           []string
		stdin          string
		stdout, stderr string // stderr: what it must contain
		code           int
	}{
		"output":       {args: []string{"--", "sh", "-c", "echo out; echo err >&2"}, stdout: "out\n", stderr: "err\n"},
		"exit code":    {args: []string{"debian", "--", "sh", "-c", "exit 7"}, code: 7},
		"signal":       {args: []string{"--", "sh", "-c", "kill -9 $$"}, code: 137},
		"input":        {args: []string{"-i", "--", "cat"}, stdin: "through\n", stdout: "through\n"},
		"no input":     {args: []string{"--", "cat"}, stdin: "unread\n"},
		"environment":  {args: []string{"-e", "A=b c", "--", "printenv", "A"}, stdout: "b c\n"},
		"name, size":   {args: []string{"--name", "box", "--memory", "256", "--cpus", "2", "--", "sh", "-c", "hostname; nproc"}, stdout: "box\n2\n"},
		"not found":    {args: []string{"--", "no-such-program"}, stderr: "no-such-program", code: 127},
		"not runnable": {args: []string{"--", "/etc/passwd"}, stderr: "/etc/passwd", code: 126},
		"bad port":     {args: []string{"-p", "99999"}, stderr: "guest_port must be 1-65535", code: 125},
		"bad image":    {args: []string{"no-such-image", "--", "true"}, stderr: "no-such-image", code: 125},
		"two images":   {args: []string{"debian", "true"}, stderr: "smolvm run debian -- true", code: 125},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := f.smolvmCmd(append([]string{"run"}, c.args...)...)
			cmd.Stdin = strings.NewReader(c.stdin)
			stdout, stderr, code := f.runToEnd(cmd)
			if stdout != c.stdout || !strings.Contains(stderr, c.stderr) || code != c.code {
				t.Errorf("exit code %d, stdout %q, stderr %q; want %d, %q, %q", code, stdout, stderr, c.code, c.stdout, c.stderr)
			}
		})
	}
}

// TestCommandInterrupted sends Ctrl-C to a server in the foreground.
func TestCommandInterrupted(t *testing.T) {
	f := newFixture(t)
	s := f.startServer(f.smolvmCmd(append([]string{"run"}, serveCommandOn("8000")...)...))
	if s.transport != string(smolvm.NFTables) {
		t.Errorf("transport is %s", s.transport)
	}
	wantPage(t, s.port, "by command")
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	if code := s.cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d, want 130", code)
	}
	wantRefused(t, s.port)
}

// TestCommandKilled kills smolvm in the middle. The VM must go with it, and the next
// command removes the rest.
func TestCommandKilled(t *testing.T) {
	f := newFixture(t)
	s := f.startServer(f.smolvmCmd(append([]string{"run"}, serveCommandOn("8000")...)...))
	if len(monitors(t)) == 0 {
		t.Fatal("the test does not see the VM's process")
	}
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	eventually(t, "no VM is left", func() error {
		if left := monitors(t); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	if vms, _ := filepath.Glob(f.dir + "/vms/*/disk.qcow2"); len(vms) != 1 {
		t.Errorf("before the next command the disk should be there: %v", vms)
	}
	stdout, stderr, code := f.runToEnd(f.smolvmCmd("ls", "--json"))
	if code != 0 || strings.TrimSpace(stdout) != "[]" {
		t.Errorf("ls: exit code %d, %q, %q", code, stdout, stderr)
	}
	wantRefused(t, s.port)
}

// TestUnprivileged is a user without any privilege. The tunnel serves, and what
// root's tests want holds here too.
func TestUnprivileged(t *testing.T) {
	f := newFixture(t)
	const nobody = 65534
	if err := os.Chown(f.dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(f.dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, nobody, nobody))
	}); err != nil {
		t.Fatal(err)
	}
	as := func(args ...string) *exec.Cmd {
		args = append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "--", smolvmPath}, args...)
		cmd := exec.Command("setpriv", args...)
		cmd.Env = append(os.Environ(), "SMOLVM_DATA_DIR="+f.dir, "HOME="+f.dir, "TMPDIR=/tmp")
		cmd.Dir = "/"
		return cmd
	}
	s := f.startServer(as(append([]string{"--verbose", "run"}, serveCommandOn("18000:8000")...)...))
	if s.transport != string(smolvm.SSHTunnel) || !strings.Contains(s.stderr.String(), "transport=ssh_tunnel") {
		t.Errorf("transport is %s", s.transport)
	}
	wantPage(t, s.port, "by command")
	// Everything else is as with root.
	second := f.startServer(as(append([]string{"run"}, serveCommandOn("18000:8000")...)...))
	if s.port != 18000 || second.port != 18001 {
		t.Errorf("both asked for port 18000, and got %d and %d", s.port, second.port)
	}
	wantPage(t, second.port, "by command")
	// One is asked to end, the other killed. Nothing of either must remain.
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	if code := s.cmd.ProcessState.ExitCode(); code != 143 {
		t.Errorf("exit code %d, want 143", code)
	}
	wantRefused(t, s.port)
	if err := second.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-second.ended
	if stdout, stderr, code := f.runToEnd(as("ls", "--json")); code != 0 || strings.TrimSpace(stdout) != "[]" {
		t.Errorf("ls: exit code %d, %q, %q", code, stdout, stderr)
	}
	wantRefused(t, second.port)
	if _, stderr, code := f.runToEnd(as("run", "-p", "8000", "--transport", "nftables", "--", "true")); code != 125 || !strings.Contains(stderr, "nftables") {
		t.Errorf("forced nftables without permission: exit code %d, %q", code, stderr)
	}
}

// TestTransports wants root's log to name the transport, chosen and forced.
func TestTransports(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	serve(t, vm, 8000, "page")
	for _, c := range []struct {
		want smolvm.TransportKind
		opts []smolvm.PortOption
	}{
		{smolvm.NFTables, nil},
		{smolvm.SSHTunnel, []smolvm.PortOption{smolvm.Transport(smolvm.SSHTunnel)}},
		{smolvm.NFTables, []smolvm.PortOption{smolvm.Transport(smolvm.NFTables)}},
	} {
		before := hostState(t, f.dir+"/vms")
		port := expose(t, vm, 8000, 0, append(c.opts, smolvm.HostPort(freePort(t)))...)
		wantPage(t, port, "page")
		if got := transportOf(t, vm, port); got != c.want {
			t.Errorf("transport is %s, want %s", got, c.want)
		}
		var logged bool
		for line := range strings.Lines(f.log.String()) {
			logged = logged || strings.Contains(line, "transport="+string(c.want)) && strings.Contains(line, fmt.Sprintf("host_port=%d ", port))
		}
		if !logged {
			t.Errorf("the log does not tell the transport of port %d", port)
		}
		if err := vm.UnexposeLocal(t.Context(), port, 8000); err != nil {
			t.Fatal(err)
		}
		wantRefused(t, port)
		wantState(t, before, f.dir+"/vms")
	}
}

func TestCommandKeeps(t *testing.T) {
	f := newFixture(t)
	if _, stderr, code := f.runToEnd(f.smolvmCmd("run", "--rm=false", "--name", "kept", "--", "true")); code != 0 {
		t.Fatalf("run: exit code %d, %s", code, stderr)
	}
	stdout, _, _ := f.runToEnd(f.smolvmCmd("ls", "--json"))
	var vms []map[string]any
	if err := json.Unmarshal([]byte(stdout), &vms); err != nil || len(vms) != 1 {
		t.Fatalf("ls --json: %v, %q", err, stdout)
	}
	if vm := vms[0]; vm["name"] != "kept" || vm["status"] != "stopped" || vm["memory_mib"] != 512.0 || vm["image"] != "debian" {
		t.Errorf("ls --json: %v", vm)
	}
	if stdout, _, _ := f.runToEnd(f.smolvmCmd("ls")); !strings.Contains(stdout, "kept") {
		t.Errorf("ls: %q", stdout)
	}
	if _, stderr, code := f.runToEnd(f.smolvmCmd("run", "--name", "kept", "--", "true")); code != 125 || !strings.Contains(stderr, "exists") {
		t.Errorf("run with a name that is taken: exit code %d, %q", code, stderr)
	}
	if stdout, stderr, code := f.runToEnd(f.smolvmCmd("rm", "kept")); code != 0 || stdout != "kept\n" {
		t.Errorf("rm: exit code %d, %q, %q", code, stdout, stderr)
	}
	if _, stderr, code := f.runToEnd(f.smolvmCmd("rm", "kept")); code != 1 || !strings.Contains(stderr, "not found") {
		t.Errorf("rm of nothing: exit code %d, %q", code, stderr)
	}
}

func TestCommandDoctor(t *testing.T) {
	f := newFixture(t)
	stdout, stderr, code := f.runToEnd(f.smolvmCmd("doctor", "--json"))
	var checks []map[string]string
	if err := json.Unmarshal([]byte(stdout), &checks); code != 0 || err != nil {
		t.Fatalf("doctor --json: exit code %d, %v, %q, %q", code, err, stdout, stderr)
	}
	for _, c := range checks {
		if c["verdict"] == "broken" || c["name"] == "" || c["detail"] == "" {
			t.Errorf("check: %v", c)
		}
	}
	// Without its tools the main job cannot work, and doctor says what to install.
	sick := f.smolvmCmd("doctor")
	sick.Env = append(sick.Env, "PATH=/nonexistent")
	stdout, stderr, code = f.runToEnd(sick)
	if code != 1 || !strings.Contains(stdout, "qemu-system-x86") {
		t.Errorf("doctor without QEMU: exit code %d, %q, %q", code, stdout, stderr)
	}
	if stdout, _, code := f.runToEnd(f.smolvmCmd("version", "--json")); code != 0 || !strings.Contains(stdout, `"version"`) {
		t.Errorf("version --json: exit code %d, %q", code, stdout)
	}
	if _, stderr, code := f.runToEnd(f.smolvmCmd("docter")); code != 2 || !strings.Contains(stderr, "doctor") {
		t.Errorf("a misspelt verb: exit code %d, %q", code, stderr)
	}
	if stdout, _, code := f.runToEnd(f.smolvmCmd("completion", "bash")); code != 0 || !strings.Contains(stdout, "smolvm") {
		t.Errorf("completion: exit code %d, %q", code, stdout)
	}
}
