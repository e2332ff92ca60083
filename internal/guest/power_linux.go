package guest

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// How long processes have to end when the guest powers off: after they were asked,
// and after they were killed.
const (
	endGrace  = 3 * time.Second
	killGrace = time.Second
)

// endProcesses ends all processes but this one, which must be PID 1.
func endProcesses(r *Reaper, log *slog.Logger) {
	if childless() {
		return
	}
	_ = unix.Kill(-1, unix.SIGTERM) // fails only if there is nobody
	_ = unix.Kill(-1, unix.SIGCONT)
	hangUpTerminals("/proc")
	if !awaitChildless(r, endGrace) {
		_ = unix.Kill(-1, unix.SIGKILL)
		if !awaitChildless(r, killGrace) {
			log.Warn("some processes cannot be killed")
		}
	}
}

// settleRoot writes everything to the disk and leaves it as after an unmount.
func settleRoot(log *slog.Logger) {
	unix.Sync()
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		log.Warn("could not make the root file system read-only", "error", err)
	}
}

// powerOff turns the machine off, or resets it if it cannot: the host lets a reset
// end it, too. It returns only with an error.
func powerOff() error {
	off := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	reset := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	return fmt.Errorf("power off: %w", errors.Join(off, reset))
}

// childless tells whether PID 1 has no children, not even ones that are to be reaped. Then no
// process is left but the kernel's: all others descend from it.
func childless() bool {
	err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
	return errors.Is(err, unix.ECHILD)
}

// awaitChildless waits until that is so. It reports whether it was in time.
func awaitChildless(r *Reaper, limit time.Duration) bool {
	deadline := time.After(limit)
	for !childless() {
		select {
		case <-r.reaped:
		case <-deadline:
			return false
		}
	}
	return true
}

// hangUpTerminals sends SIGHUP to all who lead the session of a terminal, as closing
// it does: interactive shells ignore SIGTERM.
func hangUpTerminals(proc string) {
	_ = eachProcess(proc, func(p process) {
		if p.terminal && p.leader {
			_ = unix.Kill(p.pid, unix.SIGHUP)
		}
	})
}

// process is what a process's stat says of it.
type process struct {
	pid      int
	leader   bool // of its session
	terminal bool // it has a controlling one
}

// eachProcess calls do with each process that lives, but PID 1 and the kernel's own.
func eachProcess(proc string, do func(process)) error {
	dir, err := os.Open(proc)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == 1 {
			continue
		}
		stat, err := os.ReadFile(proc + "/" + name + "/stat")
		if err != nil {
			continue // it is gone by now
		}
		if p, ok := parseProcess(pid, stat); ok {
			do(p)
		}
	}
	return nil
}

// parseProcess reads a process's stat. It returns false for a zombie, and for a
// process of the kernel's own.
func parseProcess(pid int, stat []byte) (process, bool) {
	// The name before the last ")" may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 7 {
		return process{}, false
	}
	state, session, terminal := string(fields[0]), string(fields[3]), string(fields[4])
	flags, err := strconv.ParseUint(string(fields[6]), 10, 32)
	if err != nil || flags&processKThread != 0 || state == "Z" || state == "X" {
		return process{}, false
	}
	return process{pid: pid, leader: session == strconv.Itoa(pid), terminal: terminal != "0"}, true
}
