package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm"
)

// background are the options of VMs that owners of their own run.
func (f *fixture) background(opts ...smolvm.Option) []smolvm.Option {
	return append(append(f.opts[:len(f.opts):len(f.opts)], smolvm.Background(), smolvm.OwnerProgram(smolvmPath), smolvm.Keep()), opts...)
}

// launchBackground starts a VM that is deleted at the end of the test.
func (f *fixture) launchBackground(name string, opts ...smolvm.Option) *smolvm.VM {
	f.t.Helper()
	vm, err := smolvm.Launch(f.t.Context(), f.background(append(opts, smolvm.Name(name))...)...)
	if err != nil {
		f.t.Fatalf("launch: %v\n%s", err, f.log)
	}
	f.deleteAtEnd(name)
	return vm
}

// createBackground makes a VM that is not started, and is deleted at the end of the test.
func (f *fixture) createBackground(name string) {
	f.t.Helper()
	vm, err := smolvm.New(f.t.Context(), f.background(smolvm.Name(name))...)
	if err != nil {
		f.t.Fatal(err)
	}
	f.deleteAtEnd(name)
	if err := vm.Close(); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) deleteAtEnd(name string) {
	f.t.Cleanup(func() {
		vm, err := smolvm.Open(context.Background(), name, f.background()...)
		if errors.Is(err, smolvm.ErrNotFound) {
			return
		}
		if err == nil {
			if f.t.Failed() {
				if log, err := os.ReadFile(f.dir + "/vms/" + name + "/owner.log"); err == nil {
					f.t.Logf("owner of %s:\n%s", name, log)
				}
			}
			err = errors.Join(vm.Delete(context.Background()), vm.Close())
		}
		if err != nil {
			f.t.Errorf("delete %s: %v", name, err)
		}
	})
}

func info(t *testing.T, vm *smolvm.VM) smolvm.Info {
	t.Helper()
	i, err := vm.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// kill kills a process and waits until it is gone, or a zombie.
func kill(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("open process %d: %v", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		t.Fatal(err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("process %d does not end: %v", pid, err)
		}
		return
	}
}

// TestBackground: a VM of a background owner outlives who started it, and any process deals
// with it.
func TestBackground(t *testing.T) {
	f := newFixture(t)
	vm := f.launchBackground("web")
	owner := info(t, vm).Owner
	if owner.PID == 0 || owner.PID == os.Getpid() {
		t.Fatalf("the owner is process %d, and this is %d", owner.PID, os.Getpid())
	}
	serve(t, vm, 8000, "background")
	port := expose(t, vm, 8000, 0)
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	wantPage(t, port, "background")

	again, err := smolvm.Open(t.Context(), "web", f.opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := run(t, again, "hostname"); got != "web\n" {
		t.Errorf("host name %q", got)
	}
	if err := again.SetEnv(t.Context(), "COLOUR=blue", "SHAPE=round"); err != nil {
		t.Error(err)
	}
	if err := again.UnsetEnv(t.Context(), "SHAPE", "NEVER"); err != nil {
		t.Error(err)
	}
	if got := run(t, again, `echo "$COLOUR-$SHAPE"`); got != "blue-\n" {
		t.Errorf("environment: %q", got)
	}
	if err := again.Pause(t.Context()); err != nil {
		t.Error(err)
	}
	wantStatus(t, again, smolvm.StatusPaused)
	if err := again.Resume(t.Context()); err != nil {
		t.Error(err)
	}
	if err := again.Rename(t.Context(), "other"); !errors.Is(err, smolvm.ErrRunning) {
		t.Errorf("rename of a running VM: %v, want ErrRunning", err)
	}
	if err := again.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, again, smolvm.StatusStopped)
	wantRefused(t, port)
	// The owner has ended with its VM.
	eventually(t, "the owner ends", func() error {
		if err := syscall.Kill(owner.PID, 0); !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("process %d: %w", owner.PID, err)
		}
		return nil
	})
	if err := again.Rename(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
	f.deleteAtEnd("other")
	renamed, err := smolvm.Open(t.Context(), "other", f.background()...)
	if err != nil {
		t.Fatal(err)
	}
	if err := renamed.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := run(t, renamed, `hostname; echo "$COLOUR"`); got != "other\nblue\n" {
		t.Errorf("after rename and start: %q", got)
	}
}

// TestOwnerKilled: the VM and what the kernel forwards live on when the owner is killed; the next
// command gives it a new owner, which brings the rest back.
func TestOwnerKilled(t *testing.T) {
	f := newFixture(t)
	vm := f.launchBackground("web")
	serve(t, vm, 8000, "orphan")
	kernel := expose(t, vm, 8000, 0)
	tunnel := expose(t, vm, 8000, 0, smolvm.HostPort(freePort(t)), smolvm.Transport(smolvm.SSHTunnel))
	run(t, vm, "sleep 1000 & echo $! >/run/sleeper")
	before := info(t, vm)

	kill(t, before.Owner.PID)
	// Nobody has done anything yet.
	if got, err := get("127.0.0.1", kernel, "/"); err != nil || string(got) != "orphan" {
		t.Errorf("through the kernel, without an owner: %q, %v", got, err)
	}
	if _, err := get("127.0.0.1", tunnel, "/"); !isRefused(err) {
		t.Errorf("through the tunnel, without an owner: %v, want it refused", err)
	}

	vms, err := smolvm.List(t.Context(), f.background()...)
	if err != nil || len(vms) != 1 || vms[0].Err != nil || vms[0].Status != smolvm.StatusRunning {
		t.Fatalf("list: %+v, %v", vms, err)
	}
	after := vms[0]
	if after.Owner.PID == before.Owner.PID || after.VMM.PID != before.VMM.PID || after.IP != before.IP {
		t.Errorf("adopted as %+v, was %+v", after, before)
	}
	if len(after.Forwards) != 2 {
		t.Errorf("forwards: %+v", after.Forwards)
	}
	wantPage(t, kernel, "orphan")
	wantPage(t, tunnel, "orphan")
	if got := transportOf(t, vm, kernel); got != smolvm.NFTables {
		t.Errorf("the kernel's forward is %s now", got)
	}
	run(t, vm, "kill -0 $(cat /run/sleeper)")

	// Paused, it is adopted as it is.
	if err := vm.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	kill(t, info(t, vm).Owner.PID)
	wantStatus(t, vm, smolvm.StatusPaused)
	if err := vm.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantPage(t, kernel, "orphan")
	if err := vm.UnexposeLocal(t.Context(), kernel, 8000); err != nil {
		t.Error(err)
	}
	wantRefused(t, kernel)

	// By a program that has no command to run owners with, it is adopted too.
	kill(t, info(t, vm).Owner.PID)
	t.Setenv("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
	own, err := smolvm.Open(t.Context(), "web", f.opts...)
	if err != nil {
		t.Fatal(err)
	}
	if pid := info(t, own).Owner.PID; pid != os.Getpid() {
		t.Errorf("the owner is %d", pid)
	}
	if got := run(t, own, "echo mine"); got != "mine\n" {
		t.Errorf("output %q", got)
	}
	if err := own.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestOwnerKilledInBusyMoments kills the owner while it does something. Whatever that came to, the
// next command finds a VM in a state that it can go on from.
func TestOwnerKilledInBusyMoments(t *testing.T) {
	f := newFixture(t)
	vm := f.launchBackground("web")
	serve(t, vm, 8000, "busy")

	t.Run("expose", func(t *testing.T) {
		for round := range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			exposed := make(chan int)
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					port, err := vm.ExposeLocal(ctx, 8000, smolvm.HostPort(freePort(t)))
					if err != nil && ctx.Err() == nil {
						continue // it was the owner's last
					}
					if err != nil {
						return
					}
					select {
					case exposed <- port:
					case <-ctx.Done():
						return
					}
				}
			}()
			pid := info(t, vm).Owner.PID
			for range 1 + 2*round {
				<-exposed
			}
			kill(t, pid)
			<-exposed // by the next owner
			cancel()
			<-done
			forwards := vm.Forwards()
			for _, fw := range forwards {
				if got, err := get("127.0.0.1", fw.HostPort, "/"); err != nil || string(got) != "busy" {
					t.Errorf("port %d: %q, %v", fw.HostPort, got, err)
				}
			}
			if err := vm.UnexposeAll(t.Context(), forwards); err != nil {
				t.Error(err)
			}
			for _, fw := range forwards {
				wantRefused(t, fw.HostPort)
			}
		}
		if rules := output(t, "nft", "list", "map", "ip", "smolvm", "forwards"); containsElements(rules) {
			t.Errorf("the kernel still forwards: %s", rules)
		}
	})

	t.Run("command", func(t *testing.T) {
		cmd := vm.Command(t.Context(), "sh", "-c", "echo begun; exec sleep 1000")
		out := &firstWrite{done: make(chan struct{})}
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-out.done
		kill(t, info(t, vm).Owner.PID)
		var exit *smolvm.ExitError
		if err := cmd.Wait(); err == nil || errors.As(err, &exit) {
			t.Errorf("a command that lost its owner: %v", err)
		}
		if got := run(t, vm, "echo next"); got != "next\n" {
			t.Errorf("the next command: %q", got)
		}
	})

	t.Run("copy", func(t *testing.T) {
		endless := &slowSource{begun: make(chan struct{})}
		copied := make(chan error, 1)
		go func() { copied <- vm.WriteFileFrom(t.Context(), "/root/half", endless, 0o600) }()
		<-endless.begun
		kill(t, info(t, vm).Owner.PID)
		if err := <-copied; err == nil {
			t.Error("a copy that lost its owner succeeded")
		}
		eventually(t, "nothing is left of the half copy", func() error {
			res, err := vm.Run(t.Context(), "ls -A /root | grep -c half")
			if err == nil && res.ExitCode == 0 {
				err = fmt.Errorf("there is: %s", res.Stdout)
			}
			return err
		})
	})
}

// firstWrite tells of the first write to it.
type firstWrite struct {
	once sync.Once
	done chan struct{}
}

func (w *firstWrite) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.done) })
	return len(p), nil
}

// slowSource yields bytes for ever, and tells once a good many were taken.
type slowSource struct {
	n     int
	begun chan struct{}
}

func (s *slowSource) Read(p []byte) (int, error) {
	const many = 1 << 20
	if s.n < many && s.n+len(p) >= many {
		close(s.begun)
	}
	s.n += len(p)
	return len(p), nil
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
	return string(out)
}

// TestOwnerKilledWhileStarting kills it at moments throughout a start.
func TestOwnerKilledWhileStarting(t *testing.T) {
	f := newFixture(t)
	f.createBackground("web")
	for _, moment := range []time.Duration{0, 30, 60, 100, 200, 400, 800, 1500} {
		vm, err := smolvm.Open(t.Context(), "web", f.background()...)
		if err != nil {
			t.Fatal(err)
		}
		started := make(chan error, 1)
		go func() { started <- vm.Start(t.Context()) }()
		var pid int
		eventually(t, "there is an owner", func() error {
			pid = 0
			for _, p := range ownersOf(t) {
				pid = p
			}
			if pid == 0 {
				return errors.New("there is none")
			}
			return nil
		})
		time.Sleep(moment * time.Millisecond) // any moment will do
		kill(t, pid)
		if err := <-started; err == nil {
			t.Log("it was up before it was killed")
		}
		// Whatever is there, a start makes a running VM of it.
		if err := vm.Start(t.Context()); err != nil {
			t.Fatalf("start after a kill at %d ms: %v", moment, err)
		}
		if got := run(t, vm, "echo up"); got != "up\n" {
			t.Errorf("output %q", got)
		}
		if err := vm.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		// The next round must not take this one's owner for its own.
		eventually(t, "no process is left", func() error {
			if monitors, owners := monitors(t), ownersOf(t); len(monitors)+len(owners) > 0 {
				return fmt.Errorf("monitors %v, owners %v", monitors, owners)
			}
			return nil
		})
	}
}

// TestStartedAsItEnds starts a VM in the moment in which it has ended, when its owner is about to
// end, too. It goes on to run.
func TestStartedAsItEnds(t *testing.T) {
	f := newFixture(t)
	vm := f.launchBackground("web", smolvm.Memory(256))
	f.closeAtEnd(vm)
	for range 4 {
		info, err := vm.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		kill(t, info.VMM.PID)
		if err := errors.Join(vm.Wait(t.Context()), vm.Start(t.Context())); err != nil {
			t.Fatal(err)
		}
		if got := run(t, vm, "sleep 0.2; echo up"); got != "up\n" {
			t.Errorf("output %q", got)
		}
	}
}

// TestStartedAtOnce: of many who start a VM at the same time one starts it, and all are served.
func TestStartedAtOnce(t *testing.T) {
	f := newFixture(t)
	f.createBackground("web")
	var starting sync.WaitGroup
	for range 5 {
		starting.Go(func() {
			vm, err := smolvm.Open(t.Context(), "web", f.background()...)
			if err == nil {
				err = vm.Start(t.Context())
			}
			if err != nil {
				t.Error(err)
				return
			}
			if res, err := vm.Run(t.Context(), "echo up"); err != nil || res.Stdout != "up\n" {
				t.Errorf("run: %+v, %v", res, err)
			}
		})
	}
	starting.Wait()
	if owners := ownersOf(t); len(owners) != 1 {
		t.Errorf("owners: %v", owners)
	}
}

// TestStartCancelled: nothing is left of a start that was given up.
func TestStartCancelled(t *testing.T) {
	f := newFixture(t)
	vm, err := smolvm.New(t.Context(), f.background(smolvm.Name("web"))...)
	if err != nil {
		t.Fatal(err)
	}
	f.deleteAtEnd("web")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		eventually(t, "QEMU runs", func() error {
			if len(monitors(t)) < 2 {
				return errors.New("not yet")
			}
			return nil
		})
	}()
	if err := vm.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want the cancellation", err)
	}
	if left := monitors(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if status, err := vm.Status(t.Context()); err != nil || status == smolvm.StatusRunning {
		t.Errorf("status %s, %v", status, err)
	}
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestRemovedWhenItEnds: an ephemeral VM of a background owner is removed when it ends, however.
func TestRemovedWhenItEnds(t *testing.T) {
	f := newFixture(t)
	ends := map[string]func(vm *smolvm.VM, info smolvm.Info){
		"guest powers off": func(vm *smolvm.VM, _ smolvm.Info) {
			cmd := vm.Command(t.Context(), "true")
			cmd.PowerOff = true
			if err := cmd.StartDetached(); err != nil {
				t.Error(err)
			}
		},
		"stop": func(vm *smolvm.VM, _ smolvm.Info) {
			if err := vm.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		},
		"killed": func(_ *smolvm.VM, info smolvm.Info) { kill(t, info.VMM.PID) },
		"killed without an owner": func(_ *smolvm.VM, info smolvm.Info) {
			kill(t, info.Owner.PID)
			kill(t, info.VMM.PID)
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			vm, err := smolvm.Launch(t.Context(), append(f.opts[:len(f.opts):len(f.opts)], smolvm.Background(), smolvm.OwnerProgram(smolvmPath))...)
			if err != nil {
				t.Fatal(err)
			}
			port := expose(t, vm, 8000, 0)
			end(vm, info(t, vm))
			eventually(t, "the VM is gone", func() error {
				vms, err := smolvm.List(t.Context(), f.opts...)
				if err == nil && len(vms) > 0 {
					err = fmt.Errorf("%+v", vms)
				}
				return err
			})
			wantRefused(t, port)
		})
	}
}

// TestReboot: after all processes and interfaces have gone the records are left, and the VMs start
// again with what they had exposed.
func TestReboot(t *testing.T) {
	f := newFixture(t)
	vm := f.launchBackground("web")
	run(t, vm, "echo kept >/root/note && sync")
	port := expose(t, vm, 8000, 0)
	before := info(t, vm)
	kill(t, before.Owner.PID)
	kill(t, before.VMM.PID)
	output(t, "nft", "flush", "ruleset")

	wantStatus(t, vm, smolvm.StatusStopped)
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := run(t, vm, "cat /root/note"); got != "kept\n" {
		t.Errorf("note: %q", got)
	}
	serve(t, vm, 8000, "rebooted")
	wantPage(t, port, "rebooted")
}

// TestDetachedCommand: what is started detached lives on without its owner, and what it says is
// in the console's log.
func TestDetachedCommand(t *testing.T) {
	f := newFixture(t)
	vm := f.launchBackground("web")
	cmd := vm.Command(t.Context(), "sh", "-c", "echo said by $0 >&2; cd /srv; echo detached >index.html; exec python3 -m http.server 8000", "child")
	if err := cmd.StartDetached(); err != nil {
		t.Fatal(err)
	}
	waitPort(t, vm, 8000)
	port := expose(t, vm, 8000, 0)
	kill(t, info(t, vm).Owner.PID)
	if got, err := get("127.0.0.1", port, "/"); err != nil || string(got) != "detached\n" {
		t.Errorf("without an owner: %q, %v", got, err)
	}
	run(t, vm, "true") // there is an owner again
	wantPage(t, port, "detached\n")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	log, err := vm.Logs(ctx, smolvm.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	wantLine(t, log, "said by child")
}
