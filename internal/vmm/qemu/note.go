package qemu

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/logfile"
)

// note is a file in memory for the messages of a child that outlives this process.
// It keeps the first of them and refuses the rest: nobody has to read it, and it
// never grows.
type note struct{ file *os.File }

func newNote() (*note, error) {
	fd, err := unix.MemfdCreate("note", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make file in memory: %w", err)
	}
	n := &note{os.NewFile(uintptr(fd), "note")}
	err = n.file.Truncate(logfile.TailLimit)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		_ = n.file.Close() // nothing is in it
		return nil, fmt.Errorf("bound file in memory: %w", err)
	}
	return n, nil
}

// LastLines returns at most n of the last lines, without what terminals would act on.
func (n *note) LastLines(count int) string {
	text := make([]byte, logfile.TailLimit)
	read, err := n.file.ReadAt(text, 0)
	if err != nil {
		return "" // closed: nobody asks any more
	}
	written, _, _ := strings.Cut(string(text[:read]), "\x00")
	return logfile.LastLines(written, count)
}
