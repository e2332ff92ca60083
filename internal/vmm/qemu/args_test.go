package qemu

import (
	"encoding/json"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/vmm"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The golden file has every combination of what changes the arguments, with
// options and their values on one line.
func TestArguments(t *testing.T) {
	var got strings.Builder
	write := func(what string, l launch) {
		args, err := arguments(l)
		if err != nil {
			t.Fatal(err)
		}
		got.WriteString("# " + what + "\n")
		for i, arg := range args {
			switch {
			case i == 0:
			case strings.HasPrefix(arg, "-"):
				got.WriteByte('\n')
			default:
				got.WriteByte(' ')
			}
			got.WriteString(arg)
		}
		got.WriteString("\n\n")
	}
	for _, accelerator := range []vmm.Accelerator{vmm.KVM, vmm.TCG} {
		for _, network := range []string{"none", "tap", "user", "user without egress"} {
			for _, disk := range []string{"", `/disk, with "quotes".qcow2`} {
				l := launch{
					Config: vmm.Config{
						Kernel: "/kernel", Initrd: "/initrd", Disk: disk, MemoryMiB: 512, CPUs: 2, Accelerator: accelerator,
						Network: vmm.Network{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}},
					},
					Monitor: 3, Channel: 4, Console: 5,
				}
				if accelerator == vmm.TCG {
					l.TSCKHz = 2596134
				}
				switch network {
				case "tap":
					l.Network.Mode, l.TAP = vmm.NetworkTAP, 6
					if accelerator == vmm.KVM {
						l.VhostNet = 7
					}
				case "none":
					l.Network.Mode = vmm.NetworkNone
				default:
					l.Network.Mode, l.Egress = vmm.NetworkUser, network == "user"
				}
				write(string(accelerator)+", network "+network+", disk "+disk, l)
			}
		}
	}
	one := launch{
		Config:  vmm.Config{Kernel: "/kernel", Initrd: "/initrd", Disk: "/disk", MemoryMiB: 512, CPUs: 1, Accelerator: vmm.TCG},
		Monitor: 3, Channel: 4, Console: 5,
	}
	more := one
	more.Disks = []store.Disk{{Path: "/data, raw", Format: store.DiskRaw}, {Path: "/more.qcow2", Format: store.DiskQcow2, ReadOnly: true}}
	write("more disks", more)
	restored := one
	restored.From, restored.SavedMemory, restored.State = &vmm.Saved{}, 6, 7
	write("goes on from there", restored)
	golden := filepath.Join("testdata", "arguments.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("run with -update if this is right (-want +got):\n%s", diff)
	}
}

func TestCommandLine(t *testing.T) {
	tests := map[string]struct {
		launch launch
		want   string
	}{
		"one emulated CPU": {
			launch{Config: vmm.Config{Accelerator: vmm.TCG, CPUs: 1}, TSCKHz: 2000000},
			"console=ttyS0 quiet panic=-1 random.trust_cpu=on cryptomgr.notests pci=off mitigations=off norandmaps psi=0 noreplace-smp no_timer_check tsc=reliable tsc_early_khz=2000000",
		},
		"no counter": {
			launch{Config: vmm.Config{Accelerator: vmm.TCG, CPUs: 2}},
			"console=ttyS0 quiet panic=-1 random.trust_cpu=on cryptomgr.notests pci=off mitigations=off norandmaps psi=0 no_timer_check",
		},
		"KVM": {
			launch{Config: vmm.Config{Accelerator: vmm.KVM, CPUs: 1}, TSCKHz: 2000000, Append: "smolvm.probe"},
			"console=ttyS0 quiet panic=-1 random.trust_cpu=on cryptomgr.notests pci=off smolvm.probe",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, commandLine(test.launch)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// No path may turn into an option of its own.
func FuzzDiskArguments(f *testing.F) {
	f.Add("/a,driver=raw")
	f.Add(`/a","driver":"raw`)
	f.Fuzz(func(t *testing.T, path string) {
		args, err := diskArguments(path)
		if err != nil || path == "" {
			return
		}
		var node struct {
			Driver string
			File   struct{ Driver, Filename string }
		}
		if err := json.Unmarshal([]byte(args[1]), &node); err != nil {
			t.Fatal(err)
		}
		if node.Driver != "qcow2" || node.File.Driver != "file" || node.File.Filename != path {
			t.Errorf("%q became %+v", path, node)
		}
	})
}
