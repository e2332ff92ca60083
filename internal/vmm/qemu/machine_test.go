package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/vmm"
)

func TestGuestPowersOff(t *testing.T) {
	t.Parallel()
	config := testConfig(t)
	m, r := bootMachine(t, config)
	if err := r.order("poweroff"); err != nil {
		t.Fatal(err)
	}
	if err := await(t, m); err != nil {
		t.Error("an orderly end is an error:", err)
	}
	if _, err := m.Channel(t.Context()); !errors.Is(err, errEnded) {
		t.Error("channel after the end:", err)
	}
	if err := m.Pause(t.Context()); !errors.Is(err, errEnded) {
		t.Error("pause after the end:", err)
	}
	if err := m.Stop(t.Context(), nil); err != nil {
		t.Error("stop after the end:", err)
	}
	var left []string
	entries, err := os.ReadDir(config.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if got := strings.Join(left, " "); got != vmm.ConsoleLog+" "+qemuLog {
		t.Error("left in the directory:", got)
	}
	console, err := os.ReadFile(filepath.Join(config.Dir, vmm.ConsoleLog))
	if err != nil || !strings.Contains(string(console), probeLine) {
		t.Errorf("the console's log does not have the guest's line: %v: %q", err, console)
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	m, r := bootMachine(t, testConfig(t))
	if err := m.Stop(t.Context(), func(context.Context) error { return r.order("poweroff") }); err != nil {
		t.Error(err)
	}
	if m.shutdown != "guest-shutdown" || m.Err() != nil {
		t.Errorf("ended by %q with %v", m.shutdown, m.Err())
	}
}

func TestStopPaused(t *testing.T) {
	t.Parallel()
	m, r := bootMachine(t, testConfig(t))
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(t.Context(), func(context.Context) error { return r.order("poweroff") }); err != nil {
		t.Error(err)
	}
	if m.shutdown != "guest-shutdown" || m.Err() != nil {
		t.Errorf("ended by %q with %v", m.shutdown, m.Err())
	}
}

// A guest that cannot be asked, or does not obey in time, is ended by QEMU.
func TestStopDisobedient(t *testing.T) {
	tests := map[string]func(context.Context) error{
		"not asked": nil,
		"refuses":   func(context.Context) error { return errors.New("no") },
		"hangs": func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		},
		"does nothing": func(context.Context) error { return nil },
	}
	for name, powerOff := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := startMachine(t, testConfig(t))
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			began := time.Now()
			if err := m.Stop(ctx, powerOff); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > quitTimeout+2*time.Second {
				t.Error("took", took)
			}
			if m.shutdown != "host-qmp-quit" || m.Err() != nil {
				t.Errorf("ended by %q with %v", m.shutdown, m.Err())
			}
		})
	}
}

// A QEMU that does not answer any more is killed.
func TestStopHungQEMU(t *testing.T) {
	t.Parallel()
	m := startMachine(t, testConfig(t))
	if err := syscall.Kill(m.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := m.Stop(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > quitTimeout+killTimeout {
		t.Error("took", took)
	}
	if err := await(t, m); err != nil {
		t.Error(err)
	}
}

func TestPause(t *testing.T) {
	t.Parallel()
	m, r := bootMachine(t, testConfig(t))
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.conn.SetDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if err := r.order("ping"); err != nil {
		t.Fatal(err)
	}
	if line, err := r.lines.ReadString('\n'); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a paused guest answers %q, %v", line, err)
	}
	if err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if answer, err := r.do("time"); err != nil || answer != "pong" {
		t.Errorf("a resumed guest answers %q, %v", answer, err)
	}
}

// The channel outlives its connections.
func TestReconnect(t *testing.T) {
	t.Parallel()
	m, r := bootMachine(t, testConfig(t))
	for range 3 {
		if err := r.conn.Close(); err != nil {
			t.Fatal(err)
		}
		again, err := callGuest(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		r.conn, r.lines = again.conn, again.lines
	}
}

func TestGuestPanics(t *testing.T) {
	t.Parallel()
	m, r := bootMachine(t, testConfig(t))
	if err := r.order("panic"); err != nil {
		t.Fatal(err)
	}
	if err := await(t, m); err == nil || err.Error() != "guest's kernel panicked: sysrq triggered crash" {
		t.Error("a panic is reported as", err)
	}
}

func TestGuestReboots(t *testing.T) {
	t.Parallel()
	m, r := bootMachine(t, testConfig(t))
	if err := r.order("reboot"); err != nil {
		t.Fatal(err)
	}
	if err := await(t, m); err != nil || m.shutdown != "guest-reset" {
		t.Errorf("ended by %q with %v", m.shutdown, err)
	}
}

func TestQEMUKilled(t *testing.T) {
	t.Parallel()
	m := startMachine(t, testConfig(t))
	if err := syscall.Kill(m.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := await(t, m); err == nil || !strings.Contains(err.Error(), "killed by signal 9") {
		t.Error("a killed QEMU is reported as", err)
	} else if strings.Contains(err.Error(), waitNotice) {
		t.Error("a notice passes for QEMU's last words:", err)
	}
	if err := m.Kill(); err != nil {
		t.Error("kill after the end:", err)
	}
}

// A disk keeps what was written synchronously, even if QEMU is killed.
func TestDisk(t *testing.T) {
	t.Parallel()
	config := testConfig(t)
	base := filepath.Join(config.Dir, "base, with a comma")
	if err := os.WriteFile(base, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	config.Disk = filepath.Join(config.Dir, "a,b=c.qcow2")
	create := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, config.Disk)
	if output, err := create.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	m, r := bootMachine(t, config)
	if answer, err := r.do("disk", "hello"); err != nil || answer != "written" {
		t.Fatal(answer, err)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	_, r = bootMachine(t, config)
	if answer, err := r.do("disk"); err != nil || answer != "hello" {
		t.Error("read back:", answer, err)
	}
}

func TestStartRefused(t *testing.T) {
	config := testConfig(t)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\necho 'no such luck' >&2\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	var notInstalled *NotInstalledError
	tests := map[string]struct {
		binary string
		change func(*vmm.Config)
		want   func(error) bool
	}{
		"QEMU missing":    {"qemu-system-z80", nil, func(err error) bool { return errors.As(err, &notInstalled) }},
		"kernel missing":  {"", func(c *vmm.Config) { c.Kernel += ".no" }, func(err error) bool { return errors.Is(err, fs.ErrNotExist) }},
		"initrd missing":  {"", func(c *vmm.Config) { c.Initrd = "" }, func(err error) bool { return errors.Is(err, fs.ErrNotExist) }},
		"disk missing":    {"", func(c *vmm.Config) { c.Disk = "/no/disk" }, func(err error) bool { return errors.Is(err, fs.ErrNotExist) }},
		"dir missing":     {"", func(c *vmm.Config) { c.Dir += "/no" }, func(err error) bool { return errors.Is(err, fs.ErrNotExist) }},
		"no kernel":       {"", func(c *vmm.Config) { c.Kernel = text }, says("kernel")},
		"no disk":         {"", func(c *vmm.Config) { c.Disk = text }, says("not in qcow2 format")},
		"no accelerator":  {"", func(c *vmm.Config) { c.Accelerator = "xen" }, func(err error) bool { return errors.Is(err, vmm.ErrAccelerator) }},
		"no network mode": {"", func(c *vmm.Config) { c.Network.Mode = "token ring" }, says("token ring")},
		"no TAP":          {"", func(c *vmm.Config) { c.Network.Mode = vmm.NetworkTAP }, says("TAP")},
		"no memory":       {"", func(c *vmm.Config) { c.MemoryMiB = 0 }, says("64 MiB")},
		"no CPU":          {"", func(c *vmm.Config) { c.CPUs = 0 }, says("1 CPU")},
		"QEMU refuses":    {text, nil, says("no such luck")},
	}
	before := openFiles(t)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			config := config
			if test.change != nil {
				test.change(&config)
			}
			began := time.Now()
			m, err := NewDriver(Options{Binary: test.binary, Log: testLog(t)}).Start(t.Context(), config)
			if err == nil {
				t.Fatal("started", m.Kill())
			}
			if !test.want(err) {
				t.Error("the error is", err)
			}
			if took := time.Since(began); took > killTimeout {
				t.Error("took", took)
			}
			if _, err := os.Stat(filepath.Join(config.Dir, channelSocket)); !errors.Is(err, fs.ErrNotExist) {
				t.Error("a socket is left:", err)
			}
		})
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files were open before, %d are after", before, after)
	}
}

func says(text string) func(error) bool {
	return func(err error) bool { return strings.Contains(err.Error(), text) }
}

// A start that is cancelled, at whatever moment, leaves nothing.
func TestStartCancelled(t *testing.T) {
	config := testConfig(t)
	d := NewDriver(Options{Log: testLog(t), CacheDir: t.TempDir()})
	// The first start measures the time stamp counter and keeps the result.
	m, err := d.Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	cancelled := 0
	for delay := time.Duration(0); delay < 60*time.Millisecond; delay += 4 * time.Millisecond {
		ctx, cancel := context.WithTimeout(t.Context(), delay)
		m, err := d.Start(ctx, config)
		cancel()
		switch {
		case err == nil:
			err = m.Kill()
		case errors.Is(err, context.DeadlineExceeded):
			cancelled++
			err = nil
		}
		if err != nil {
			t.Error(delay, err)
		}
	}
	if cancelled == 0 {
		t.Error("no start was cancelled")
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files were open before, %d are after", before, after)
	}
	if children := childrenOf(t, os.Getpid()); len(children) > 0 {
		t.Error("children are left:", children)
	}
}

// openFiles counts this process's open files.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// childrenOf returns the children of a process, zombies too.
func childrenOf(t testing.TB, pid int) (children []int) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // of a thread that has ended
		}
		for _, word := range strings.Fields(string(b)) {
			child, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			children = append(children, child)
		}
	}
	return children
}

// BenchmarkBoot measures from the start of QEMU to the guest's first answer, and
// on the guest's own clock to user space.
func BenchmarkBoot(b *testing.B) {
	for _, cpus := range []int{1, 2} {
		b.Run(fmt.Sprintf("cpus=%d", cpus), func(b *testing.B) {
			config := testConfig(b)
			config.CPUs, config.MemoryMiB = cpus, 512
			d := NewDriver(Options{CacheDir: b.TempDir()})
			var inside float64
			for b.Loop() {
				m, err := d.Start(b.Context(), config)
				if err != nil {
					b.Fatal(err)
				}
				r, err := callGuest(b.Context(), m)
				if err != nil {
					b.Fatal(err)
				}
				uptime, err := r.do("uptime")
				if err != nil {
					b.Fatal(err)
				}
				seconds, err := strconv.ParseFloat(uptime, 64)
				if err != nil {
					b.Fatal(err)
				}
				inside += seconds
				b.StopTimer()
				if err := errors.Join(r.conn.Close(), m.Kill()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(inside/float64(b.N), "guest-s/op")
		})
	}
}
