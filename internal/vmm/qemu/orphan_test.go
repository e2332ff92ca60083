package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/sockdir"
	"github.com/smolvm/smolvm/internal/vmm"
)

// A guest that talks while nobody listens to its console goes on, and is heard again
// by the next owner.
func TestOrphanTalks(t *testing.T) {
	t.Parallel()
	config := testConfig(t)
	family := orphanMachine(t, config)
	conn := dialOrphan(t, config, channelSocket)
	word := "unheard"
	times := 2 * capacity(t) / len(word)
	if answer, err := newRemote(conn).do("shout", word, fmt.Sprint(times)); answer != "said" || err != nil {
		t.Fatal("the guest hangs:", answer, err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	m, r := adoptMachine(t, config)
	if answer, err := r.do("shout heard 1"); answer != "said" || err != nil {
		t.Error(answer, err)
	}
	awaitLog(t, config, "heard")
	if err := m.Kill(); err != nil {
		t.Error(err)
	}
	awaitEnd(t, config, family)
}

// capacity returns how much a connection holds that nobody reads from: what says more
// than that must wait, or has no connection.
func capacity(t testing.TB) (size int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0]) //nolint:errcheck // nothing can be lost
	defer unix.Close(fds[1]) //nolint:errcheck // nothing can be lost
	for {
		n, err := unix.Write(fds[0], make([]byte, 1024))
		if errors.Is(err, unix.EAGAIN) {
			return size
		} else if err != nil {
			t.Fatal(err)
		}
		size += n
	}
}

// QEMU goes on though who was to listen to its console died before it took the
// connection.
func TestConsoleDead(t *testing.T) {
	t.Parallel()
	dir, err := sockdir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close() //nolint:errcheck // only looked things up in
	var files inheritance
	args := []string{"-M", "none", "-nodefaults", "-display", "none"}
	early := map[string]net.Conn{}
	for _, id := range []string{"console", "monitor"} {
		socket, err := dir.Listen(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close() //nolint:errcheck // a copy of QEMU's
		args = append(args, "-chardev", socketChardev(id, files.add(socket), "on"))
		if early[id], err = dir.Dial(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := early["console"].Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(defaultBinary, append(args, "-mon", "chardev=monitor,mode=control")...)
	cmd.ExtraFiles, cmd.Stderr = files.files, t.Output()
	qemu, err := startProcess(cmd, false)
	if err != nil {
		t.Fatal(err)
	}
	defer qemu.kill() //nolint:errcheck // it dies with this process anyway
	meetFake(t, early["monitor"], noEvent)
}

// A QEMU that does not answer is named, and can be ended all the same.
func TestAdoptHung(t *testing.T) {
	t.Parallel()
	config := testConfig(t)
	family := orphanMachine(t, config)
	if err := syscall.Kill(family[0].id, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	d := NewDriver(Options{Log: testLog(t)})
	m, err := d.Adopt(ctx, adoption(config))
	if err == nil {
		t.Fatal("adopted", m.Kill())
	}
	if errors.Is(err, vmm.ErrGone) || !strings.Contains(err.Error(), fmt.Sprintf("process %d does not answer", family[0].id)) {
		t.Error(err)
	}
	if family[0].handle.ended() {
		t.Error("it was ended")
	}
	if err := d.KillOrphan(t.Context(), adoption(config)); err != nil {
		t.Error(err)
	}
	awaitEnd(t, config, family)
}

// Who has the lock but is no QEMU is left alone.
func TestOrphanOther(t *testing.T) {
	t.Parallel()
	config := vmm.Config{Dir: t.TempDir()}
	d := NewDriver(Options{Log: testLog(t)})
	if err := d.KillOrphan(t.Context(), adoption(config)); !errors.Is(err, os.ErrNotExist) {
		t.Error("without a lock:", err)
	}
	lock, err := takeLock(config)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close() //nolint:errcheck // nothing is written
	if _, err := d.Adopt(t.Context(), adoption(config)); !errors.Is(err, vmm.ErrGone) {
		t.Error("adopted oneself:", err)
	}
	other := exec.Command("sleep", "1000")
	other.ExtraFiles = []*os.File{lock}
	p, err := startProcess(other, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.kill() //nolint:errcheck // it is, or dies with this process
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for what, f := range map[string]func() error{
		"adopt": func() error { _, err := d.Adopt(ctx, adoption(config)); return err },
		"kill":  func() error { return d.KillOrphan(ctx, adoption(config)) },
	} {
		if err := f(); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", p.id)) {
			t.Error(what, err)
		}
	}
	select {
	case <-p.done:
		t.Error("it was killed")
	default:
	}
}
