package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/smolvm/smolvm"
)

func wantOrigin(t *testing.T, vm *smolvm.VM, want smolvm.Origin, reason string) {
	t.Helper()
	info, err := vm.Info(t.Context())
	if err != nil || info.VMM.Origin != want || !strings.Contains(info.VMM.OriginReason, reason) {
		t.Errorf("%s started from %q, %q, %v; want %q, %q", vm.Name(), info.VMM.Origin, info.VMM.OriginReason, err, want, reason)
	}
}

// templates are the directories of the templates.
func (f *fixture) templates() []string {
	f.t.Helper()
	found, err := filepath.Glob(f.dir + "/cache/templates/[0-9a-f]*/saved.json")
	if err != nil {
		f.t.Fatal(err)
	}
	for i := range found {
		found[i] = filepath.Dir(found[i])
	}
	return found
}

// individual is what must differ between two VMs, and the command that tells it.
func individual() map[string]string {
	return map[string]string{
		"host name":     "hostname",
		"machine ID":    "cat /etc/machine-id",
		"boot ID":       "cat /proc/sys/kernel/random/boot_id",
		"address":       "hostname -I",
		"MAC address":   "cat /sys/class/net/eth0/address",
		"environment":   "echo $WHO",
		"urandom":       "head -c 32 /dev/urandom | od -An -tx1",
		"getrandom":     "python3 -c 'import os; print(os.getrandom(32).hex())'",
		"Python":        "python3 -c 'import random; print(random.getrandbits(256))'",
		"UUID":          "cat /proc/sys/kernel/random/uuid",
		"TLS in Python": "python3 -c 'import ssl; print(ssl.RAND_bytes(32).hex())'",
	}
}

// TestClones starts VMs from one template, at once. Nothing that tells who they are, and no
// random number, is the same in two of them, and none is the template's.
func TestClones(t *testing.T) {
	f := newFixture(t)
	f.ownTemplates()
	f.launch() // makes the template
	if n := len(f.templates()); n != 1 {
		t.Fatalf("there are %d templates", n)
	}
	const count = 3
	vms := make([]*smolvm.VM, count)
	var starting sync.WaitGroup
	for i := range vms {
		starting.Go(func() {
			var err error
			vms[i], err = smolvm.Launch(t.Context(), append(f.opts[:len(f.opts):len(f.opts)], smolvm.Env(fmt.Sprintf("WHO=%d", i)))...)
			if err != nil {
				t.Error(err)
			}
		})
	}
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, vm := range vms {
		f.closeAtEnd(vm)
		wantOrigin(t, vm, smolvm.FromTemplate, "")
	}
	for what, command := range individual() {
		seen := map[string]string{}
		for _, vm := range vms {
			got := run(t, vm, command)
			if other, taken := seen[got]; taken {
				t.Errorf("%s of %s and %s is %q", what, vm.Name(), other, got)
			}
			seen[got] = vm.Name()
		}
	}
	// Their disks are their own.
	for i, vm := range vms {
		run(t, vm, fmt.Sprintf("echo %d >/root/note; sync", i))
	}
	for i, vm := range vms {
		if got := strings.TrimSpace(run(t, vm, "cat /root/note")); got != strconv.Itoa(i) {
			t.Errorf("the note of %d is %q", i, got)
		}
	}
	if n := len(f.templates()); n != 1 {
		t.Errorf("there are %d templates", n)
	}
}

// TestCloneClock compares the clock of a VM with the host's.
func TestCloneClock(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	wantOrigin(t, vm, smolvm.FromTemplate, "")
	wantClock(t, vm)
}

// TestResumedClock lets the guest's clock be an hour late, as if it had been paused for that long.
func TestResumedClock(t *testing.T) {
	f := newFixture(t)
	vm := f.launch()
	run(t, vm, "date -s '1 hour ago'")
	if late, _ := clockLate(t, vm); late < time.Hour-time.Minute {
		t.Fatalf("the clock is only %v late", late)
	}
	if err := errors.Join(vm.Pause(t.Context()), vm.Resume(t.Context())); err != nil {
		t.Fatal(err)
	}
	wantClock(t, vm)
	// What is not about time leaves a clock alone that the guest has set.
	run(t, vm, "date -s '1 hour ago'")
	if err := vm.SetEnv(t.Context(), "A=b"); err != nil {
		t.Fatal(err)
	}
	if late, _ := clockLate(t, vm); late < time.Hour-time.Minute {
		t.Errorf("the clock is only %v late", late)
	}
}

// wantClock wants the guest's clock to be right, or to become so: it is set exactly just after
// the guest has its identity.
func wantClock(t *testing.T, vm *smolvm.VM) {
	t.Helper()
	const precision = 50 * time.Millisecond
	eventually(t, "the guest's clock is right", func() error {
		late, unsure := clockLate(t, vm)
		if late.Abs() > precision+unsure {
			return fmt.Errorf("it is %v late, give or take %v", late, unsure)
		}
		return nil
	})
}

// clockLate tells how late the guest's clock is, and how far from that it may be.
func clockLate(t *testing.T, vm *smolvm.VM) (late, unsure time.Duration) {
	t.Helper()
	before := time.Now()
	text := strings.TrimSpace(run(t, vm, "date +%s.%N"))
	after := time.Now()
	seconds, fraction, _ := strings.Cut(text, ".")
	s, err := strconv.ParseInt(seconds, 10, 64)
	ns, err2 := strconv.ParseInt(fraction, 10, 64)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	unsure = after.Sub(before) / 2
	return before.Add(unsure).Sub(time.Unix(s, ns)), unsure
}

// TestOrigins starts a VM in each way that it can be started.
func TestOrigins(t *testing.T) {
	f := newFixture(t)
	f.ownTemplates()
	cold := f.launch(smolvm.ColdBoot())
	wantOrigin(t, cold, smolvm.FromBoot, "asked for")
	if n := len(f.templates()); n != 0 {
		t.Errorf("a cold boot made %d templates", n)
	}
	vm := f.launch()
	wantOrigin(t, vm, smolvm.FromTemplate, "")
	run(t, vm, "echo kept >/root/note")
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantOrigin(t, vm, smolvm.FromBoot, "a disk that was written to")
	if got := strings.TrimSpace(run(t, vm, "cat /root/note")); got != "kept" {
		t.Errorf("the note is %q", got)
	}
	// Another shape is another template.
	wantOrigin(t, f.launch(smolvm.Memory(256)), smolvm.FromTemplate, "")
	wantOrigin(t, f.launch(smolvm.Network(smolvm.NetworkNone)), smolvm.FromTemplate, "")
	if n := len(f.templates()); n != 2 {
		t.Errorf("there are %d templates, not one for each size of memory", n)
	}
}

// TestDamagedTemplate damages the template while a VM runs on it: that runs on, and the next
// VM has a new template.
func TestDamagedTemplate(t *testing.T) {
	f := newFixture(t)
	f.ownTemplates()
	first := f.launch()
	dir := f.templates()[0]
	memory, err := os.OpenFile(dir+"/memory", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(dir + "/memory")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := memory.WriteAt([]byte("damage"), 4096); err != nil {
		t.Fatal(err)
	}
	if err := memory.Close(); err != nil {
		t.Fatal(err)
	}
	wantOrigin(t, f.launch(), smolvm.FromTemplate, "")
	if !strings.Contains(f.log.String(), "template is made anew") {
		t.Error("the log does not say that the template was damaged")
	}
	after, err := os.Stat(dir + "/memory")
	if err != nil || os.SameFile(before, after) {
		t.Errorf("the template is the same, %v", err)
	}
	// A state that QEMU cannot read: the VM boots, and says why.
	if err := os.Truncate(dir+"/state", 100); err != nil {
		t.Fatal(err)
	}
	forgeManifest(t, dir)
	wantOrigin(t, f.launch(), smolvm.FromBoot, "QEMU")
	wantOrigin(t, f.launch(), smolvm.FromTemplate, "")
	run(t, first, "true")
}

// forgeManifest has the manifest say that the state is as it should be.
func forgeManifest(t *testing.T, dir string) {
	t.Helper()
	info, err := os.Stat(dir + "/state")
	if err != nil {
		t.Fatal(err)
	}
	path := dir + "/saved.json"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var manifest map[string]any
	if err := json.Unmarshal(data, &manifest); err != nil {
		t.Fatal(err)
	}
	state := manifest["files"].(map[string]any)["state"].(map[string]any)
	state["size"], state["modified"] = info.Size(), info.ModTime()
	if data, err = json.Marshal(manifest); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestKilledWhileTemplateIsMade kills the command at moments throughout the making of a
// template: nothing is left running, and the next start makes it.
func TestKilledWhileTemplateIsMade(t *testing.T) {
	f := newFixture(t)
	f.ownTemplates()
	for _, moment := range []time.Duration{100, 400, 800, 1200, 1600} {
		cmd := f.smolvmCmd("run", "--rm", "--", "sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a template is being made", func() error {
			drafts, _ := filepath.Glob(f.dir + "/cache/templates/.new-*/console.log")
			if len(drafts)+len(f.templates()) == 0 {
				return errors.New("there is none")
			}
			return nil
		})
		<-time.After(moment * time.Millisecond) // of the boot, in which it is to be killed
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("it ended by itself: %v", err)
		}
	}
	vm := f.launch()
	wantOrigin(t, vm, smolvm.FromTemplate, "")
	run(t, vm, "true")
	if drafts, err := filepath.Glob(f.dir + "/cache/templates/.new-*"); err != nil || len(drafts) > 0 {
		t.Errorf("left are %v, %v", drafts, err)
	}
}

// TestStages looks at what a start is said to have spent its time on.
func TestStages(t *testing.T) {
	f := newFixture(t)
	page := string(read(t, repository+"/docs/fast-start.md"))
	for _, opts := range [][]smolvm.Option{nil, {smolvm.ColdBoot()}} {
		vm, err := smolvm.New(t.Context(), append(f.opts[:len(f.opts):len(f.opts)], opts...)...)
		if err != nil {
			t.Fatal(err)
		}
		f.closeAtEnd(vm)
		began := time.Now()
		if err := vm.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		info, err := vm.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var sum time.Duration
		for _, s := range info.VMM.Stages {
			sum += s.Took
			if !strings.Contains(page, "`"+s.Name+"`") {
				t.Errorf("there is no word of the stage %q", s.Name)
			}
		}
		if sum > took || sum < took/2 {
			t.Errorf("stages %v add up to %v, the start took %v", info.VMM.Stages, sum, took)
		}
	}
}
