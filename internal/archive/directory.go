package archive

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// directory is a directory to put things into. Its methods take names of entries, never
// paths.
type directory struct {
	root *os.Root
	file *os.File // the same
}

// openDirectory makes a directory of root, which it owns from then on unless it fails.
func openDirectory(root *os.Root) (*directory, error) {
	f, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	return &directory{root: root, file: f}, nil
}

func (d *directory) close() {
	d.file.Close()
	d.root.Close()
}

// makeDirectory makes a directory, for nobody else to enter yet, unless it is there.
func (d *directory) makeDirectory(name string) (isNew bool, err error) {
	err = d.root.Mkdir(name, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err == nil, err
	}
	info, err := d.root.Lstat(name)
	if err == nil && !info.IsDir() {
		err = syscall.ENOTDIR
	}
	return false, err
}

// replaceable fails if there is something that a file or a link must not replace.
func (d *directory) replaceable(name string) error {
	info, err := d.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return syscall.EISDIR
	case info.Mode().IsRegular(), info.Mode().Type() == fs.ModeSymlink:
		return nil
	}
	return errSpecial
}

// settle gives the directory itself its mode and its time.
func (d *directory) settle(mode fs.FileMode, modified time.Time) error {
	if err := d.file.Chmod(mode); err != nil {
		return err
	}
	return d.times("", modified, unix.AT_EMPTY_PATH)
}

// setTime sets when an entry was changed, which may be a link.
func (d *directory) setTime(name string, modified time.Time) error {
	return d.times(name, modified, unix.AT_SYMLINK_NOFOLLOW)
}

func (d *directory) times(name string, modified time.Time, flags int) error {
	raw, err := d.file.SyscallConn()
	if err != nil {
		return err
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: modified.Unix(), Nsec: int64(modified.Nanosecond())}}
	var setErr error
	if err := raw.Control(func(fd uintptr) { setErr = unix.UtimesNanoAt(int(fd), name, times, flags) }); err != nil {
		return err
	}
	return setErr
}

// temporaryNames are names for files until they are whole. Its zero value is ready.
type temporaryNames struct {
	prefix string
	count  int
}

func (t *temporaryNames) next() string {
	if t.prefix == "" {
		t.prefix = ".smolvm-" + rand.Text()[:13] + "-"
	}
	t.count++
	return t.prefix + strconv.Itoa(t.count)
}
