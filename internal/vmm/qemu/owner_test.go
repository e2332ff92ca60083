package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/vmm"
)

const (
	lockFile = "lock" // in a machine's directory
	cacheEnv = "SMOLVM_QEMU_TEST_CACHE"
)

// adoption is how an owner's machine can be taken over.
func adoption(config vmm.Config) vmm.Adoption {
	return vmm.Adoption{Dir: config.Dir, Lock: filepath.Join(config.Dir, lockFile)}
}

// takeLock locks a machine's lock as owners do: unix.EWOULDBLOCK if somebody holds it.
func takeLock(config vmm.Config) (*os.File, error) {
	f, err := os.OpenFile(adoption(config).Lock, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// helpOwn starts the machine that it reads of, with its lock, says so and waits
// to be killed.
func helpOwn() error {
	config, err := readConfig()
	if err != nil {
		return err
	}
	if config.Lock, err = takeLock(config); err != nil {
		return err
	}
	fmt.Println("starting")
	if _, err := NewDriver(Options{CacheDir: os.Getenv(cacheEnv)}).Start(context.Background(), config); err != nil {
		return err
	}
	fmt.Println("started")
	select {}
}

// owner is another process that owns a machine.
type owner struct {
	cmd  *exec.Cmd
	says *bufio.Reader
}

func startOwner(t testing.TB, config vmm.Config, env ...string) *owner {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), helperEnv+"=own", configEnv+"="+marshal(t, config)), env...)
	cmd.Stderr = os.Stderr // no pipe that an orphan would keep open
	said, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	o := &owner{cmd, bufio.NewReader(said)}
	t.Cleanup(o.kill)
	return o
}

// await waits until the owner says a line.
func (o *owner) await(t testing.TB, want string) {
	t.Helper()
	for line := ""; line != want+"\n"; {
		var err error
		if line, err = o.says.ReadString('\n'); err != nil {
			t.Fatalf("the owner says %q: %v", line, err)
		}
	}
}

// kill kills the owner, so that nothing of it can clean up.
func (o *owner) kill() {
	_ = o.cmd.Process.Kill() // it may be dead
	_ = o.cmd.Wait()         // it was killed
}

// orphanMachine starts a detached machine and kills its owner once the guest runs. What
// is left when the test ends is an error, and ended.
func orphanMachine(t testing.TB, config vmm.Config) (family []*relative) {
	t.Helper()
	config.Detached = true
	o := startOwner(t, config)
	t.Cleanup(func() {
		if _, err := findOrphan(context.Background(), adoption(config).Lock); !errors.Is(err, vmm.ErrGone) {
			t.Error("a machine is left:", err)
		}
		if err := NewDriver(Options{}).KillOrphan(context.Background(), adoption(config)); err != nil {
			t.Error(err)
		}
	})
	o.await(t, "started")
	family = relatives(t, config, o)
	awaitLog(t, config, probeLine)
	o.kill()
	return family
}

// relative is a process that an owner started.
type relative struct {
	id     int
	handle *pidHandle
}

func relatives(t testing.TB, config vmm.Config, o *owner) (family []*relative) {
	t.Helper()
	for _, id := range childrenOf(t, o.cmd.Process.Pid) {
		handle, err := openPID(id)
		if err != nil {
			t.Fatal(err)
		}
		// Whatever the test finds, nothing outlives it.
		t.Cleanup(func() { _, _ = handle.kill(), handle.Close() })
		family = append(family, &relative{id, handle})
	}
	want := 1
	if config.Network.Mode == vmm.NetworkUser && NewDriver(Options{}).Egress(t.Context()) == nil {
		want = 2 // slirp4netns too
	}
	if len(family) != want {
		t.Fatalf("the owner had %d children, not %d", len(family), want)
	}
	return family
}

// awaitProcesses waits until they have ended.
func awaitProcesses(t testing.TB, family []*relative) {
	t.Helper()
	for _, r := range family {
		if err := r.handle.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := r.handle.wait(); err != nil {
			t.Errorf("process %d is left: %v", r.id, err)
		}
	}
}

// awaitEnd waits until nothing is left of an owner's machine.
func awaitEnd(t testing.TB, config vmm.Config, family []*relative) {
	t.Helper()
	awaitProcesses(t, family)
	f, err := takeLock(config)
	if err != nil {
		t.Fatal("the lock is held:", err)
	}
	_ = f.Close() // nothing was written
	for _, socket := range []string{monitorSocket, channelSocket, consoleSocket} {
		if _, err := os.Lstat(filepath.Join(config.Dir, socket)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", socket, err)
		}
	}
}

// However the owner of a machine that is not detached ends, the machine ends with
// it, and another can be started in its place.
func TestOwnerKilled(t *testing.T) {
	t.Parallel()
	config := testConfig(t)
	config.Network.Mode = vmm.NetworkUser
	o := startOwner(t, config)
	o.await(t, "started")
	family := relatives(t, config, o)
	o.kill()
	awaitProcesses(t, family)
	config.Network.Mode = vmm.NetworkNone
	bootMachine(t, config)
}

// An owner that is killed while it starts a machine leaves nothing, or, if the machine
// is detached, what the next can take over or end. Not parallel: for its time, this
// process inherits all orphans.
func TestOwnerKilledStarting(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
			t.Error(err)
		}
	}()
	config := testConfig(t)
	config.Network.Mode = vmm.NetworkUser
	cache := cacheEnv + "=" + t.TempDir()
	d := NewDriver(Options{Log: testLog(t)})
	adopted, ended := 0, 0
	for i := range 60 {
		o := startOwner(t, config, cache)
		o.await(t, "starting")
		<-time.After(time.Duration(i) * 3 * time.Millisecond)
		o.kill()
		if config.Detached && i%4 == 1 {
			m, err := d.Adopt(t.Context(), adoption(config))
			if err == nil {
				adopted++
				err = m.Kill()
			}
			if err != nil && !errors.Is(err, vmm.ErrGone) {
				t.Error(i, err)
			}
		}
		if config.Detached {
			if found, err := findOrphan(t.Context(), adoption(config).Lock); err == nil {
				ended++
				_ = found.handle.Close() // only looked for
			}
		} else {
			awaitChildren(t)
		}
		if err := d.KillOrphan(t.Context(), adoption(config)); err != nil {
			t.Error(i, err)
		}
		awaitEnd(t, config, nil)
		awaitChildren(t)
		config.Detached = !config.Detached
	}
	if adopted == 0 || ended == 0 {
		t.Errorf("of the machines that owners left, %d were adopted and %d ended", adopted, ended)
	}
	t.Log("adopted:", adopted, "ended:", ended)
}

// awaitChildren reaps this process's orphans and waits until none is left.
func awaitChildren(t *testing.T) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		children := childrenOf(t, os.Getpid())
		if len(children) == 0 {
			return
		}
		for _, child := range children {
			_, _ = unix.Wait4(child, nil, unix.WNOHANG, nil) // tells nothing that the next look does not
		}
		select {
		case <-timeout:
			for _, child := range children {
				args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child))
				t.Errorf("process %d is left: %q", child, args)
			}
			t.FailNow()
		case <-time.After(5 * time.Millisecond):
		}
	}
}
