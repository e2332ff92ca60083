package qemu

import (
	"errors"
	"os"
	"syscall"
)

// isolate gives a child user and network namespaces of its own. It keeps this
// user's rights to files, and its groups (those of /dev/kvm, say), but has no
// capability, even if this is root, and no network.
func isolate(attr *syscall.SysProcAttr) {
	attr.Cloneflags |= syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: insideID(os.Geteuid()), HostID: os.Geteuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: insideID(os.Getegid()), HostID: os.Getegid(), Size: 1}}
}

// insideID is what a user or group is called within the namespace. It is never
// 0, which would keep all capabilities there.
func insideID(id int) int {
	if id == 0 {
		return 1000
	}
	return id
}

// isolationRefused tells whether err is what the kernel says where namespaces
// may not be made: switched off, restricted, too many, or in a container.
func isolationRefused(err error) bool {
	for _, refusal := range []error{
		syscall.EPERM, syscall.EACCES, syscall.EINVAL, syscall.ENOSPC, syscall.EUSERS, syscall.ENOSYS,
	} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}
