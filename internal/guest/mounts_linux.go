package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mount is one file system and where it belongs.
type mount struct {
	source, target, kind string
	flags                uintptr
	options              string
	mode                 os.FileMode // of the mount point, if it has to be made
}

const hardened = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// earlyMounts are needed to find the rest. They are moved into the root file system.
func earlyMounts() []mount {
	return []mount{
		{"dev", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755", 0o755},
		{"proc", "/proc", "proc", hardened, "", 0o555},
		{"sys", "/sys", "sysfs", hardened, "", 0o555},
	}
}

// rootMount is the root file system. Its inode tables are filled in by whoever made
// it, if ever: doing it now would write all over a sparse disk. Nor does the kernel read
// where blocks are free before it needs to know: it begins with that up to five seconds
// later, in the first moments of every copy of the guest.
func rootMount(target string) mount {
	return mount{rootDevice, target, "ext4", unix.MS_NOATIME, "noinit_itable,no_prefetch_block_bitmaps", 0o755}
}

const rootDevice = "/dev/vda"

// lateMounts are what programs expect beside the early ones. /tmp stays on the
// disk: memory is the scarcer of the two.
func lateMounts() []mount {
	return []mount{
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666", 0o755},
		{"shm", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", 0o1777},
		{"run", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=20%", 0o755},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", hardened, "", 0o755},
	}
}

// mountAll mounts below root ("/" but in tests), making mount points where they
// are missing. It goes on after an error and returns all of them.
func mountAll(root string, mounts []mount) error {
	var errs []error
	for _, m := range mounts {
		target := filepath.Join(root, m.target)
		err := os.MkdirAll(target, m.mode)
		if err == nil {
			err = unix.Mount(m.source, target, m.kind, m.flags, m.options)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("mount %s: %w", m.target, err))
		}
	}
	return errors.Join(errs...)
}

// switchRoot moves the early mounts to newRoot, makes that the root directory of the
// whole process, and empties the old root, which holds memory, of the files.
func switchRoot(newRoot string, remove []string) error {
	for _, m := range earlyMounts() {
		target := filepath.Join(newRoot, m.target)
		if err := os.MkdirAll(target, m.mode); err != nil {
			return fmt.Errorf("make mount point: %w", err)
		}
		if err := unix.Mount(m.target, target, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", m.target, err)
		}
	}
	for _, path := range remove {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("empty initramfs: %w", err)
		}
	}
	if err := unix.Chdir(newRoot); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	return nil
}

// deviceLinks makes the links in /dev that the kernel does not make.
func deviceLinks(dev string) error {
	var errs []error
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2",
	} {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil && !errors.Is(err, os.ErrExist) {
			errs = append(errs, fmt.Errorf("make device link: %w", err))
		}
	}
	return errors.Join(errs...)
}

// directories makes those that programs expect, with the modes they need.
func directories(root string) error {
	var errs []error
	for path, mode := range map[string]os.FileMode{
		"tmp": 0o777 | os.ModeSticky, "run/lock": 0o777 | os.ModeSticky, "etc": 0o755, "root": 0o700,
	} {
		path = filepath.Join(root, path)
		err := os.Mkdir(path, mode)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err == nil {
			err = os.Chmod(path, mode) // the umask may have taken bits away
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("make directory: %w", err))
		}
	}
	return errors.Join(errs...)
}
