package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/sockdir"
	"github.com/smolvm/smolvm/internal/vmm"
)

// adoptMachine takes an orphan over and waits for its guest.
func adoptMachine(t testing.TB, config vmm.Config) (*machine, *remote) {
	t.Helper()
	m, err := NewDriver(Options{Log: testLog(t)}).Adopt(t.Context(), adoption(config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Kill(); err != nil {
			t.Error(err)
		}
	})
	r, err := callGuest(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.conn.Close() }) // may be broken
	return m.(*machine), r
}

// dialOrphan connects to a socket of a machine that nobody owns.
func dialOrphan(t testing.TB, config vmm.Config, socket string) net.Conn {
	t.Helper()
	dir, err := sockdir.Open(config.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close() //nolint:errcheck // only looked things up in
	conn, err := dir.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// awaitLog waits until the console's log has a line, and returns all of it.
func awaitLog(t testing.TB, config vmm.Config, line string) string {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		console, err := os.ReadFile(filepath.Join(config.Dir, vmm.ConsoleLog))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(console), line+"\n") {
			return string(console)
		}
		select {
		case <-timeout:
			t.Fatalf("the console's log has no %q: %q", line, console)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// A machine lives on when its owner dies, and its next owner can do all that the
// first could.
func TestAdopt(t *testing.T) {
	t.Parallel()
	config := testConfig(t)
	config.Network.Mode = vmm.NetworkUser
	family := orphanMachine(t, config)
	if f, err := takeLock(config); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Fatal("the machine's lock is not held:", f, err)
	}
	var lock unix.Stat_t
	if err := unix.Stat(adoption(config).Lock, &lock); err != nil {
		t.Fatal(err)
	}
	var qemu, open int
	for _, r := range family {
		fds, err := descriptors(r.id, &lock)
		if err != nil {
			t.Error(err)
		}
		open += len(fds)
		if is, err := isOrphan(r.id, &lock); err != nil {
			t.Error(err)
		} else if is {
			qemu = r.id
		}
	}
	if open != 1 {
		t.Errorf("the lock is open %d times, not by QEMU alone", open)
	}
	// The owner had paused it.
	mon, err := newMonitor(t.Context(), dialOrphan(t, config, monitorSocket), noEvent)
	if err != nil {
		t.Fatal(err)
	}
	if err := mon.execute(t.Context(), "stop", nil, nil); err != nil {
		t.Error(err)
	}
	mon.close()

	adopted, err := NewDriver(Options{Log: testLog(t)}).Adopt(t.Context(), adoption(config))
	if err != nil {
		t.Fatal(err)
	}
	m := adopted.(*machine)
	defer m.Kill() //nolint:errcheck // it ends before
	if m.PID() != qemu {
		t.Errorf("adopted %d instead of %d", m.PID(), qemu)
	}
	if !m.Paused() {
		t.Error("it is not seen to be paused")
	}
	if err := m.Resume(t.Context()); err != nil || m.Paused() {
		t.Fatal("resume:", m.Paused(), err)
	}
	r, err := callGuest(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	defer r.conn.Close() //nolint:errcheck // it breaks
	if answer, err := r.do("shout heard 1"); answer != "said" || err != nil {
		t.Error(answer, err)
	}
	if console := awaitLog(t, config, "heard"); strings.Count(console, probeLine) != 1 {
		t.Errorf("the log does not go on: %q", console)
	}
	for _, r := range family {
		if r.handle.ended() {
			t.Errorf("process %d died with its owner", r.id)
		}
	}
	if err := m.Pause(t.Context()); err != nil || !m.Paused() {
		t.Error("pause:", m.Paused(), err)
	}
	if err := m.Stop(t.Context(), func(context.Context) error { return r.order("poweroff") }); err != nil {
		t.Error(err)
	}
	if m.shutdown != "guest-shutdown" || m.Err() != nil {
		t.Errorf("ended by %q with %v", m.shutdown, m.Err())
	}
	awaitEnd(t, config, family)
	if _, err := NewDriver(Options{}).Adopt(t.Context(), adoption(config)); !errors.Is(err, vmm.ErrGone) {
		t.Error("adopted after the end:", err)
	}
}

// However an adopted machine ends, its owner sees that, and as much of why as can
// be known.
func TestAdoptedEnds(t *testing.T) {
	tests := map[string]struct {
		end  func(*machine, *remote) error
		want string
	}{
		"killed":          {func(m *machine, _ *remote) error { return m.Kill() }, ""},
		"stopped":         {func(m *machine, _ *remote) error { return m.Stop(context.Background(), nil) }, ""},
		"powers off":      {func(_ *machine, r *remote) error { return r.order("poweroff") }, ""},
		"panics":          {func(_ *machine, r *remote) error { return r.order("panic") }, "guest's kernel panicked: sysrq triggered crash"},
		"killed by other": {func(m *machine, _ *remote) error { return syscall.Kill(m.PID(), syscall.SIGKILL) }, "QEMU ended: why is not known"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := testConfig(t)
			family := orphanMachine(t, config)
			m, r := adoptMachine(t, config)
			if err := test.end(m, r); err != nil {
				t.Error(err)
			}
			got := ""
			if err := await(t, m); err != nil {
				got = err.Error()
			}
			if (got == "") != (test.want == "") || !strings.HasPrefix(got, test.want) {
				t.Errorf("ended with %q, not %q", got, test.want)
			}
			awaitEnd(t, config, family)
			if err := m.Kill(); err != nil {
				t.Error("kill after the end:", err)
			}
		})
	}
}

// helpAdopt has a machine orphaned and takes it over.
func helpAdopt() error {
	config, err := readConfig()
	if err != nil {
		return err
	}
	owner := exec.Command("/proc/self/exe")
	owner.Env = append(os.Environ(), helperEnv+"=own")
	owner.Stderr = os.Stderr
	said, err := owner.StdoutPipe()
	if err != nil {
		return err
	}
	if err := owner.Start(); err != nil {
		return err
	}
	var word string
	for word != "started" {
		if _, err := fmt.Fscan(said, &word); err != nil {
			return err
		}
	}
	_, err = owner.Process.Kill(), owner.Wait() // it was killed
	d := NewDriver(Options{})
	fmt.Println("the owner:", err, "the guest's way out:", d.Egress(context.Background()))
	m, err := d.Adopt(context.Background(), adoption(config))
	if err != nil {
		return errors.Join(err, d.KillOrphan(context.Background(), adoption(config)))
	}
	_, err = callGuest(context.Background(), m)
	return errors.Join(err, m.Kill())
}

// Users can take over what is theirs, without privilege.
func TestAdoptUnprivileged(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("all tests run without privilege")
	}
	config := testConfig(t)
	config.Detached, config.Network.Mode = true, vmm.NetworkUser
	// A test's own directory is not open to other users.
	dir, err := os.MkdirTemp("", "smolvm-qemu-user-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}()
	config.Dir = filepath.Join(dir, "vm")
	err = errors.Join(os.Chmod(dir, 0o755), os.Mkdir(config.Dir, 0o700), os.Chown(config.Dir, testUser, testUser))
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close() //nolint:errcheck // only executed
	// /dev/net/tun as it is on Debian: open to all.
	cmd := exec.Command("unshare", "--mount", "sh", "-ec", `
		mknod -m 666 "$1/tun" c 10 200
		mount --bind "$1/tun" /dev/net/tun
		exec setpriv --reuid "$2" --regid "$2" --clear-groups /proc/self/fd/3`,
		"sh", dir, fmt.Sprint(testUser))
	cmd.ExtraFiles = []*os.File{program}
	cmd.Env = append(os.Environ(), helperEnv+"=adopt", configEnv+"="+marshal(t, config))
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Error(err)
	}
	t.Logf("%s", output)
	awaitEnd(t, config, nil)
}
