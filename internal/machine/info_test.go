package machine

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/vmm"
)

// TestInfoJSON holds the names that programs read. A change of what is here breaks them.
func TestInfoJSON(t *testing.T) {
	at := time.Date(2026, 11, 24, 1, 2, 3, 0, time.UTC)
	info := Info{
		Name: "web", Status: StatusRunning, Image: "debian", ImageID: "0123", Created: at, Started: at, MemoryMiB: 512, CPUs: 2,
		DiskSize: 8, Env: []string{"A=1"}, Keep: true, Dir: "/d", Console: "/d/c", Owner: OwnerInfo{PID: 1, Version: "v"},
		VMM:      VMMInfo{PID: 2, Accelerator: vmm.TCG, Reason: "why"},
		Network:  NetworkInfo{Mode: NetworkNAT, Reason: "none", Interface: "smol0"},
		IP:       netip.MustParseAddr("198.18.0.1"),
		Forwards: []forward.Forward{{Pair: forward.Pair{HostPort: 8080, GuestPort: 80, Protocol: forward.TCP}, Transport: forward.NFTables, Reason: "r", Health: forward.Active}},
		Usage:    Usage{Memory: 3, CPU: time.Second, Received: 4, Sent: 5, Disk: 6},
	}
	const want = `{"name":"web","status":"running","image":"debian","image_id":"0123","created":"2026-11-24T01:02:03Z",` +
		`"started":"2026-11-24T01:02:03Z","memory_mib":512,"cpus":2,"disk_bytes":8,"env":["A=1"],"keep":true,"dir":"/d","console":"/d/c",` +
		`"owner":{"pid":1,"version":"v"},"vmm":{"pid":2,"accel":"tcg","accel_reason":"why"},` +
		`"network":{"mode":"nat","reason":"none","interface":"smol0"},"ip":"198.18.0.1",` +
		`"forwards":[{"host_port":8080,"guest_port":80,"proto":"tcp","transport":"nftables","reason":"r","health":"active",` +
		`"connections_open":0,"connections_total":0,"bytes_to_guest":0,"bytes_from_guest":0}],` +
		`"usage":{"memory_bytes":3,"cpu_ns":1000000000,"received_bytes":4,"sent_bytes":5,"disk_used_bytes":6}}`
	got, err := json.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	var again Info
	if err := json.Unmarshal(got, &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(info, again, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}
