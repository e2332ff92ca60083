package guest

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// creditEntropy gives the kernel random bytes that are really random, and has it
// use them at once.
func creditEntropy(data []byte) error {
	// This is the first that a copy of this guest does: it gets no file of package os, with all
	// that this can do.
	fd, err := unix.Open("/dev/urandom", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("credit entropy: %w", err)
	}
	defer unix.Close(fd)
	// struct rand_pool_info: the credit in bits, the size in bytes, the bytes.
	info := binary.NativeEndian.AppendUint32(nil, uint32(len(data)*8))
	info = binary.NativeEndian.AppendUint32(info, uint32(len(data)))
	info = append(info, data...)
	if err = ioctl(fd, unix.RNDADDENTROPY, unsafe.Pointer(&info[0])); err == nil {
		err = ioctl(fd, rndReseedCRNG, nil)
	}
	if err != nil {
		return fmt.Errorf("credit entropy: %w", err)
	}
	return nil
}

// Of the kernel's interface, and not in package unix.
const (
	rndReseedCRNG  = 0x5207     // _IO('R', 7)
	ext4ResizeFS   = 0x40086610 // _IOW('f', 16, __u64)
	processKThread = 0x00200000 // PF_KTHREAD
)

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// setClock sets the time of day.
func setClock(now time.Time) error {
	ts := unix.NsecToTimespec(now.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}

// growRoot grows the ext4 file system at root to the size of its device.
func growRoot(root, device string) error {
	disk, err := os.Open(device)
	if err != nil {
		return fmt.Errorf("grow root file system: %w", err)
	}
	defer disk.Close()
	dir, err := os.Open(root)
	if err != nil {
		return fmt.Errorf("grow root file system: %w", err)
	}
	defer dir.Close()
	var size uint64
	var fs unix.Statfs_t
	err = control(disk, func(fd int) error { return ioctl(fd, unix.BLKGETSIZE64, unsafe.Pointer(&size)) })
	if err == nil {
		err = unix.Statfs(root, &fs)
	}
	if err == nil {
		blocks := size / uint64(fs.Bsize)
		err = control(dir, func(fd int) error { return ioctl(fd, ext4ResizeFS, unsafe.Pointer(&blocks)) })
	}
	if err != nil {
		return fmt.Errorf("grow root file system: %w", err)
	}
	return nil
}

// raiseLimits sets what every process in the guest inherits. The kernel's own limit
// on open files is of another age.
func raiseLimits() error {
	limit := unix.Rlimit{Cur: 65536, Max: 1048576}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise limits: %w", err)
	}
	return nil
}
