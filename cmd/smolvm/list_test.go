package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smolvm/smolvm"
)

func forward(host, guest int, protocol smolvm.Protocol) smolvm.Forward {
	return smolvm.Forward{Pair: smolvm.Pair{HostPort: host, GuestPort: guest, Protocol: protocol}}
}

func TestPortsInShort(t *testing.T) {
	for _, c := range []struct {
		forwards []smolvm.Forward
		want     string
	}{
		{nil, ""},
		{[]smolvm.Forward{forward(8080, 80, smolvm.TCP)}, "8080->80"},
		{[]smolvm.Forward{forward(5353, 53, smolvm.UDP), forward(8080, 80, smolvm.TCP)}, "8080->80, 5353->53/udp"},
		{[]smolvm.Forward{forward(8002, 9002, smolvm.TCP), forward(8000, 9000, smolvm.TCP), forward(8001, 9001, smolvm.TCP)}, "8000-8002->9000-9002"},
		{[]smolvm.Forward{forward(8000, 9000, smolvm.TCP), forward(8001, 9000, smolvm.TCP)}, "8000->9000, 8001->9000"},
		{[]smolvm.Forward{forward(1, 1, smolvm.TCP), forward(2, 2, smolvm.UDP)}, "1->1, 2->2/udp"},
	} {
		if got := ports(c.forwards); got != c.want {
			t.Errorf("%v: %q, want %q", c.forwards, got, c.want)
		}
	}
}

func TestVMTable(t *testing.T) {
	now := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	err := vmTable(newTable(&out, "NAME", "STATUS", "IMAGE", "AGE", "MEMORY", "PORTS"), []smolvm.Info{
		{Name: "bad", Err: errors.New("VM record /x/record.json is damaged: \x1b[2J")},
		{Name: "lost", Status: smolvm.StatusRunning, Image: "debian", Created: now, Err: errors.New("its owner does not answer")},
		{Name: "old", Status: smolvm.StatusStopped, Image: "debian", Created: now.Add(-72 * time.Hour), MemoryMiB: 512},
		{
			Name: "web", Status: smolvm.StatusRunning, Image: "debian", Created: now.Add(-90 * time.Second), MemoryMiB: 2048,
			Usage: smolvm.Usage{Memory: 300 << 20}, Forwards: []smolvm.Forward{forward(8080, 80, smolvm.TCP)},
		},
	}, now).flush()
	want := `
NAME   STATUS    IMAGE    AGE      MEMORY    PORTS
bad    damaged   VM record /x/record.json is damaged: \u001b[2J
lost   unknown   debian   0 s      -         its owner does not answer
old    stopped   debian   3 days   -         -
web    running   debian   1 min    300 MiB   8080->80
`
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), out.String()); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

// TestListDamaged has a record cut in half. The message names it, and the others are listed.
func TestListDamaged(t *testing.T) {
	dir := dataDir(t, "bad", "good")
	record := filepath.Join(dir, "vms", "bad", "record.json")
	if err := os.Truncate(record, 20); err != nil {
		t.Fatal(err)
	}
	got := invoke(t, "ls")
	if lines := strings.Split(got.stdout, "\n"); got.code != 0 || len(lines) != 4 || !strings.Contains(lines[1], record) || !strings.HasPrefix(lines[2], "good ") {
		t.Errorf("ls: exit code %d, %q, %q", got.code, got.stdout, got.stderr)
	}
	if got := invoke(t, "ls", "-q"); got.stdout != "bad\ngood\n" {
		t.Errorf("ls -q: %q", got.stdout)
	}
	got = invoke(t, "ps", "--json")
	var vms []map[string]any
	if err := json.Unmarshal([]byte(got.stdout), &vms); err != nil || len(vms) != 2 {
		t.Fatalf("ls --json: %v, %q", err, got.stdout)
	}
	if said, _ := vms[0]["error"].(string); vms[0]["name"] != "bad" || !strings.Contains(said, record) {
		t.Errorf("the damaged one: %v", vms[0])
	}
	if forwards, ok := vms[1]["forwards"].([]any); vms[1]["status"] != "created" || !ok || len(forwards) != 0 || vms[1]["error"] != nil {
		t.Errorf("the other one: %v", vms[1])
	}
	// Other verbs with all VMs leave it alone, unless they are told to remove everything.
	if got := invoke(t, "rm", "--all"); got.code != 0 || got.stdout != "good\n" {
		t.Errorf("rm --all: exit code %d, %q, %q", got.code, got.stdout, got.stderr)
	}
	if got := invoke(t, "rm", "--all", "--force"); got.code != 0 || got.stdout != "bad\n" {
		t.Errorf("rm --all --force: exit code %d, %q, %q", got.code, got.stdout, got.stderr)
	}
}

func TestInspect(t *testing.T) {
	dataDir(t, "a", "b")
	var one listed
	if got := invoke(t, "inspect", "a"); json.Unmarshal([]byte(got.stdout), &one) != nil || one.Name != "a" || one.Status != smolvm.StatusCreated {
		t.Errorf("of one VM: %+v", got)
	}
	var both []listed
	if got := invoke(t, "inspect", "b", "a", "--json"); json.Unmarshal([]byte(got.stdout), &both) != nil || len(both) != 2 || both[0].Name != "b" {
		t.Errorf("of two: %+v", got)
	}
	got := invoke(t, "inspect", "a", "c")
	if json.Unmarshal([]byte(got.stdout), &both) != nil || len(both) != 1 || got.code != exitFailed || !strings.Contains(got.stderr, `VM not found: "c"`) {
		t.Errorf("of one that there is and one that there is not: %+v", got)
	}
}

// TestInspectFields is the contract with programs: the names of what a running VM has.
func TestInspectFields(t *testing.T) {
	var out bytes.Buffer
	vm := smolvm.Info{
		Name: "web", Status: smolvm.StatusRunning, Image: "debian",
		Forwards: []smolvm.Forward{{Pair: smolvm.Pair{HostPort: 1, GuestPort: 2, Protocol: smolvm.TCP}, Transport: smolvm.SSHTunnel, Reason: "why", Health: smolvm.Active}},
	}
	vm.Owner.PID, vm.VMM.PID, vm.VMM.Accelerator = 1, 2, smolvm.TCG
	if err := printJSON(&out, newListed(vm)); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"name": "web", "status": "running", "image": "debian", "keep": false, "dir": "",
		"owner": map[string]any{"pid": 1.0}, "vmm": map[string]any{"pid": 2.0, "accel": "tcg"},
		"forwards": []any{map[string]any{
			"host_port": 1.0, "guest_port": 2.0, "proto": "tcp", "transport": "ssh_tunnel", "reason": "why", "health": "active",
			"connections_open": 0.0, "connections_total": 0.0, "bytes_to_guest": 0.0, "bytes_from_guest": 0.0,
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
