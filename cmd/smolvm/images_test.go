package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smolvm/smolvm"
)

func TestImageTable(t *testing.T) {
	now := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	err := imageTable(newTable(&out, "NAME", "ID", "SIZE", "AGE", "KERNEL", "VMS"), []smolvm.ImageInfo{
		{Name: "debian", ID: "0123456789abcdef", Created: now.Add(-time.Hour), Kernel: "6.1.0", Size: 270 << 20, Current: true, Shared: true},
		{Name: "web", ID: "0", Created: now, Kernel: "6.1.0", Size: 1, VMs: []string{"a", "b"}},
	}, now).flush()
	want := "NAME              ID             SIZE      AGE   KERNEL   VMS\n" +
		"debian (shared)   0123456789ab   270 MiB   1 h   6.1.0    -\n" +
		"web (replaced)    0              1 B       0 s   6.1.0    a, b\n"
	if diff := cmp.Diff(want, out.String()); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}
