package machine

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/smolvm/smolvm/internal/diskusage"
)

// Usage is what a running VM has used of the host.
type Usage struct {
	// Memory is what of the host's memory the monitor has mapped and present, in bytes:
	// the guest's and its own.
	Memory int64 `json:"memory_bytes"`
	// CPU is the processor time that the monitor has taken.
	CPU time.Duration `json:"cpu_ns"`
	// Received and Sent are the bytes that the guest has received and sent through its
	// network interface. They are 0 if the host has no end of it.
	Received int64 `json:"received_bytes"`
	Sent     int64 `json:"sent_bytes"`
	// Disk is what the VM's disk takes of the host's, beyond its image, in bytes.
	Disk int64 `json:"disk_used_bytes"`
}

// usage measures a run. What cannot be read, as of a run that ends, is zero.
func (v *VM) usage(r *run, disk string) Usage {
	var u Usage
	u.Memory, u.CPU = processUsage(r.machine.PID())
	if name := r.net.info().Interface; name != "" {
		// What the host's end sends, the guest receives.
		u.Received, u.Sent = counter(name, "tx_bytes"), counter(name, "rx_bytes")
	}
	u.Disk, _ = diskusage.Of(disk)
	return u
}

// processUsage reads what a process has used from /proc.
func processUsage(pid int) (memory int64, cpu time.Duration) {
	if pages, ok := field(fmt.Sprintf("/proc/%d/statm", pid), 1); ok {
		memory = pages * int64(os.Getpagesize())
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return memory, 0
	}
	// The program's name, in parentheses, may have anything in it. Of what comes after,
	// the 12th and 13th fields are the ticks spent in user space and in the kernel.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const userTicks, kernelTicks, ticksPerSecond = 11, 12, 100
	if len(fields) <= kernelTicks {
		return memory, 0
	}
	user, _ := strconv.ParseInt(string(fields[userTicks]), 10, 64)
	kernel, _ := strconv.ParseInt(string(fields[kernelTicks]), 10, 64)
	return memory, time.Duration(user+kernel) * time.Second / ticksPerSecond
}

// counter reads one of the counters of a network interface.
func counter(name, what string) int64 {
	n, _ := field(filepath.Join("/sys/class/net", name, "statistics", what), 0)
	return n
}

// field reads one of the numbers that a file has, separated by spaces.
func field(path string, index int) (int64, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	fields := bytes.Fields(data)
	if index >= len(fields) {
		return 0, false
	}
	n, err := strconv.ParseInt(string(fields[index]), 10, 64)
	return n, err == nil
}
