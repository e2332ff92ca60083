package machine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/smolvm/smolvm/internal/qcow2"
)

func TestCompleteDisks(t *testing.T) {
	t.Chdir(t.TempDir())
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	image := qcow2.Overlay{Size: 1 << 20, Backing: filepath.Join(dir, "data"), Format: qcow2.Raw}
	err = errors.Join(os.WriteFile("data", make([]byte, 1024), 0o600), os.WriteFile("odd", make([]byte, 1000), 0o600),
		os.WriteFile("empty", nil, 0o600), os.Mkdir("dir", 0o700), image.Create("overlay.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := completeDisks([]Disk{{Path: "data"}, {Path: "/dev/null/../null", Format: DiskRaw}})
	if !errors.Is(err, ErrInvalidOption) || !strings.Contains(err.Error(), "neither a file nor a block device") {
		t.Errorf("got %+v, %v", got, err)
	}
	got, err = completeDisks([]Disk{{Path: "./data", ReadOnly: true}})
	if diff := cmp.Diff([]Disk{{Path: filepath.Join(dir, "data"), Format: DiskRaw, ReadOnly: true}}, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	for name, c := range map[string]struct {
		disks []Disk
		want  string
	}{
		"no path":   {[]Disk{{}}, "is empty"},
		"not there": {[]Disk{{Path: "nosuch"}}, "truncate -s 10G " + dir + "/nosuch"},
		"directory": {[]Disk{{Path: "dir"}}, "neither a file"},
		"twice":     {[]Disk{{Path: "data"}, {Path: "./data"}}, "is given twice"},
		"odd size":  {[]Disk{{Path: "odd"}}, "1000 bytes"},
		"no size":   {[]Disk{{Path: "empty"}}, "0 bytes"},
		"format":    {[]Disk{{Path: "data", Format: "vmdk"}}, `not "vmdk"`},
		"overlay":   {[]Disk{{Path: "overlay.qcow2"}}, "leads to another file"},
		"no qcow2":  {[]Disk{{Path: "data", Format: DiskQcow2}}, "not in qcow2 format"},
		"too many":  {make([]Disk, maxDisks+1), "more than 16"},
	} {
		if got, err := completeDisks(c.disks); !errors.Is(err, ErrInvalidOption) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}
