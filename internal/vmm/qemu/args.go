package qemu

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/vmm"
)

// emulatedCPU is what an emulated guest sees. It is x86-64-v2, which current
// distributions are built for, with the instructions that TLS and SSH are slow
// without. Its random number instruction seeds the guest at boot. ERMS is left
// out: emulated, "rep movsb" makes copying and fork a third slower. AVX is too:
// this part of QEMU's emulation is new, and only hashing gained from it.
const emulatedCPU = "qemu64,-svm,+cx16,+lahf-lm,+popcnt,+ssse3,+sse4.1,+sse4.2," +
	"+aes,+pclmulqdq,+movbe,+rdrand,+fsgsbase,+smep"

// translationCacheMiB bounds what an emulated guest's translated code takes of
// the host's memory. It grows to that only if the guest runs so much code.
const translationCacheMiB = 256

// channelDevice is the guest's end of the channel. No program but our QEMU has this
// argument, which tells it from others.
const channelDevice = "virtserialport,chardev=channel,name=" + guestapi.ChannelName

// launch is all that QEMU's arguments depend on. The descriptors are those that
// the files have in QEMU.
type launch struct {
	vmm.Config
	Monitor, Channel, Console int
	TAP, VhostNet             int    // 0: none
	SavedMemory, State        int    // of Config.From
	Egress                    bool   // vmm.NetworkUser really leads somewhere
	TSCKHz                    int    // 0: not known
	Append                    string // to the kernel's command line
}

// arguments returns QEMU's command line, without the program.
func arguments(l launch) ([]string, error) {
	args := []string{
		"-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
		// QEMU needs nothing of what this takes away: a guest that breaks out of the
		// emulation finds no exec and no privilege to gain.
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		// ACPI is how the kernel finds the devices. Without the clock chip it waits
		// a second for it; it has no use for the old timer and interrupt controller.
		// Memory is not offered for sharing with other VMs: that would be a side channel.
		"-machine", "microvm,acpi=on,rtc=on,pit=off,pic=off,x-option-roms=off,auto-kernel-cmdline=off,mem-merge=off,dump-guest-core=off,memory-backend=" + memoryID,
		"-global", "virtio-mmio.force-legacy=false",
	}
	switch l.Accelerator {
	case vmm.KVM:
		// No virtualization within the guest: what it does not see it cannot attack.
		args = append(args, "-accel", "kvm", "-cpu", "host,vmx=off,svm=off")
	case vmm.TCG:
		// Several processors share one thread: where each has its own, QEMU loses track
		// of code that the guest's kernel patches while another processor runs it.
		// A few boots in a thousand hung over that, and guests that did nothing but patch
		// within two minutes, all of them.
		threads := "multi"
		if l.CPUs > 1 {
			threads = "single"
		}
		args = append(args, "-accel", fmt.Sprintf("tcg,thread=%s,tb-size=%d", threads, translationCacheMiB), "-cpu", emulatedCPU)
	default:
		return nil, fmt.Errorf("%w: there is none called %q", vmm.ErrAccelerator, l.Accelerator)
	}
	args = append(args,
		"-smp", strconv.Itoa(l.CPUs),
		"-m", strconv.Itoa(l.MemoryMiB),
		// Who speaks to the monitor is connected already. QEMU 7.2 takes a connection that comes
		// while it sets up its monitor twice at times: it greets twice, or never answers.
		"-chardev", socketChardev("monitor", l.Monitor, "on"), "-mon", "chardev=monitor,mode=control",
		// The guest does not run before somebody listens to its console, who is connected
		// already, too. Later, what is said to nobody is dropped.
		"-chardev", socketChardev("console", l.Console, "on"), "-serial", "chardev:console",
		"-chardev", socketChardev("channel", l.Channel, "off"),
		"-device", "virtio-serial-device,max_ports=2",
		"-device", channelDevice,
	)
	memory, err := memoryArguments(l)
	if err != nil {
		return nil, err
	}
	disk, err := diskArguments(l.Disk)
	if err != nil {
		return nil, err
	}
	more, err := moreDisks(l.Disks)
	if err != nil {
		return nil, err
	}
	network, err := networkArguments(l)
	if err != nil {
		return nil, err
	}
	return slices.Concat(args, memory, disk, more, network, bootArguments(l)), nil
}

// bootArguments say what the guest begins with. One that goes on from a saved state needs no
// kernel: it is in the memory.
func bootArguments(l launch) []string {
	if l.From != nil {
		// It does not run before all is restored.
		return []string{"-incoming", "defer", "-S"}
	}
	return []string{"-kernel", l.Kernel, "-initrd", l.Initrd, "-append", commandLine(l)}
}

// memoryID is what QEMU calls the guest's main memory.
const memoryID = "memory"

// memoryArguments make the guest's memory. Machines that go on from a saved one map its
// memory privately: they share what they do not write.
func memoryArguments(l launch) ([]string, error) {
	type object struct {
		Kind  string `json:"qom-type"`
		ID    string `json:"id"`
		Size  int64  `json:"size"`
		Path  string `json:"mem-path,omitempty"`
		Share bool   `json:"share"`
		// Others must not be able to find out by the time of a write that they share a page.
		Merge bool `json:"merge"`
		Dump  bool `json:"dump"`
	}
	o := object{Kind: "memory-backend-ram", ID: memoryID, Size: int64(l.MemoryMiB) << 20}
	if l.From != nil {
		// The file may be gone from where it was by now.
		o.Kind, o.Path = "memory-backend-file", fmt.Sprintf("/proc/self/fd/%d", l.SavedMemory)
	}
	options, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("describe memory: %w", err)
	}
	return []string{"-object", string(options)}, nil
}

func socketChardev(id string, fd int, wait string) string {
	return fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=%s", id, fd, wait)
}

// networkArguments connects the guest's network interface.
func networkArguments(l launch) ([]string, error) {
	var backend string
	switch l.Network.Mode {
	case vmm.NetworkNone, "":
		return nil, nil
	case vmm.NetworkTAP:
		backend = fmt.Sprintf("tap,id=net,fd=%d", l.TAP)
		if l.VhostNet != 0 {
			backend += fmt.Sprintf(",vhost=on,vhostfd=%d", l.VhostNet)
		}
	case vmm.NetworkUser:
		// An interface whose cable leads nowhere: QEMU's own user-mode network, in the
		// host's network, would open the host's loopback to the guest.
		backend = "hubport,id=net,hubid=0"
		if l.Egress {
			backend = fmt.Sprintf("user,id=net,ipv6=off,net=%s,host=%s,dns=%s,dhcpstart=%s",
				userNetwork, userGateway, userProxy, userGuest)
		}
	default:
		return nil, fmt.Errorf("there is no network mode %q", l.Network.Mode)
	}
	// Who goes on from a saved state has not moved: nobody need be told where it is now.
	device := "virtio-net-device,netdev=net,guest_announce=off"
	if len(l.Network.MAC) > 0 {
		device += ",mac=" + l.Network.MAC.String()
	}
	return []string{"-netdev", backend, "-device", device}, nil
}

// commandLine returns the kernel's command line.
func commandLine(l launch) string {
	words := []string{
		"console=ttyS0", "quiet",
		// With -no-reboot, a panic ends the VM instead of leaving it hanging.
		"panic=-1",
		"random.trust_cpu=on",
		// The kernel's self-tests of its cryptography are a fourth of an emulated boot.
		"cryptomgr.notests",
		"pci=off", // there is none to look for
	}
	if l.Accelerator == vmm.TCG {
		// The processor runs QEMU's translation of the guest's code, in which its
		// countermeasures are not what they were: they cost 0.1 s of boot for nothing.
		words = append(words, "mitigations=off")
		// Programs at the same addresses every time find their translated code again:
		// starting one takes a third of the time. What randomizing would have
		// protected from whom, emulation does not protect.
		words = append(words, "norandmaps")
		// What waits for whom is counted at every switch between threads, which costs most
		// where threads run for a moment only: a twentieth of a start. There is little to be
		// learned from it here.
		words = append(words, "psi=0")
		if l.CPUs == 1 {
			// Nor does it pay to patch the lock prefixes out of the code.
			words = append(words, "noreplace-smp")
		}
		// The kernel must not measure time by emulated timers: in one of four boots
		// it hung or panicked over the result.
		words = append(words, "no_timer_check")
		if l.TSCKHz != 0 {
			words = append(words, "tsc=reliable", fmt.Sprintf("tsc_early_khz=%d", l.TSCKHz))
		}
	}
	if l.Append != "" {
		words = append(words, l.Append)
	}
	return strings.Join(words, " ")
}
