package qemu

import (
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/logfile"
)

// A note keeps the first of what a child says and lets it go on.
func TestNote(t *testing.T) {
	n, err := newNote()
	if err != nil {
		t.Fatal(err)
	}
	if got := n.LastLines(3); got != "" {
		t.Errorf("an empty note says %q", got)
	}
	cmd := exec.Command("sh", "-c", `
		echo first >&2
		printf 'se\033cond\n' >&2
		for i in 1 2 3; do head -c "$1" /dev/zero | tr '\0' x; done >&2
		echo last`, "sh", "9999")
	cmd.Stderr = n.file
	if out, err := cmd.Output(); string(out) != "last\n" {
		t.Errorf("the child ended before: %q, %v", out, err)
	}
	said := n.LastLines(logfile.TailLimit)
	if !strings.HasPrefix(said, "first\nsecond\nxxx") || len(said) > logfile.TailLimit || len(said) < 9999 {
		t.Errorf("%d bytes are kept: %.20q", len(said), said)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(n.file.Fd()), &stat); err != nil || stat.Size != logfile.TailLimit {
		t.Error("size", stat.Size, err)
	}
	if err := n.file.Close(); err != nil {
		t.Error(err)
	}
	if got := n.LastLines(3); got != "" {
		t.Errorf("a closed note says %q", got)
	}
}
