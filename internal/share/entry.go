package share

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// beneath is what keeps the kernel from following anything: names are those of entries anyway, and
// this would stop one that is not. Filesystems that are mounted below a folder belong to it.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// openEntry opens an entry of a directory, whatever it is, with O_PATH: that does nothing to a
// device or a pipe, and does not follow a link.
func openEntry(dir int, name string) (int, *unix.Stat_t, error) {
	fd, err := openBeneath(dir, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, nil, err
	}
	return withStat(fd)
}

// withStat returns what was opened, with what it is, or closes it.
func withStat(fd int) (int, *unix.Stat_t, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		_ = unix.Close(fd)
		return -1, nil, err
	}
	return fd, &stat, nil
}

func openBeneath(dir int, name string, flags, mode uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Mode: mode, Resolve: beneath}
	var fd int
	err := again(func() (err error) { fd, err = unix.Openat2(dir, name, &how); return err })
	return fd, err
}

// self is a path of a file that is open. It leads to that very file, even if that is a link.
func self(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// again makes f go on that a signal has interrupted.
func again(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// version tells contents of a file from those before.
type version struct {
	size         int64
	mtime, ctime unix.Timespec
}

func versionOf(stat *unix.Stat_t) version { return version{stat.Size, stat.Mtim, stat.Ctim} }
