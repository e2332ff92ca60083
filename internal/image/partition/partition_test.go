package partition

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const diskSize = 8 << 20

// partitioned makes a disk with a table.
func partitioned(t testing.TB, script string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, diskSize), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sfdisk", "-q", path)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v: %s", err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

const (
	scriptMBR = "label: dos\nstart=2048, size=2048, type=83\nstart=6144, size=1024, type=82\n"
	scriptGPT = "label: gpt\nstart=2048, size=2048\nstart=6144, size=1024, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n"
)

func TestList(t *testing.T) {
	for _, c := range []struct {
		disk []byte
		want []Partition
	}{
		{partitioned(t, scriptMBR), []Partition{{Offset: 1 << 20, Size: 1 << 20}, {Offset: 3 << 20, Size: 1 << 19}}},
		{partitioned(t, scriptGPT), []Partition{{Offset: 1 << 20, Size: 1 << 20}, {Offset: 3 << 20, Size: 1 << 19, Root: true}}},
		{make([]byte, diskSize), nil},
		{nil, nil},
		{make([]byte, 600), nil},
	} {
		got, err := List(bytes.NewReader(c.disk), int64(len(c.disk)))
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("it has %+v, not %+v, %v", got, c.want, err)
		}
	}
	for _, script := range []string{scriptMBR, scriptGPT} {
		cut := partitioned(t, script)[:2<<20]
		if got, err := List(bytes.NewReader(cut), int64(len(cut))); !errors.Is(err, ErrFormat) {
			t.Errorf("one that is cut has %+v, %v", got, err)
		}
	}
}

func FuzzList(f *testing.F) {
	const part = 34 * sectorSize
	f.Add(partitioned(f, scriptMBR)[:part])
	f.Add(partitioned(f, scriptGPT)[:part])
	f.Fuzz(func(t *testing.T, head []byte) {
		disk := make([]byte, diskSize)
		copy(disk, head)
		list, err := List(bytes.NewReader(disk), diskSize)
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Fatal(err)
		}
		for _, p := range list {
			if p.Offset <= 0 || p.Size <= 0 || p.Offset > diskSize || p.Size > diskSize-p.Offset {
				t.Errorf("%+v is not on the disk", p)
			}
		}
	})
}
