package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// awaitDevice waits until find finds something, looking again whenever the kernel
// tells that its devices changed. It fails as find does, other than with
// os.ErrNotExist, or when ctx ends.
func awaitDevice[T any](ctx context.Context, find func() (T, error)) (T, error) {
	var zero T
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return zero, fmt.Errorf("listen for devices: %w", err)
	}
	events := os.NewFile(uintptr(fd), "uevents")
	defer events.Close()
	const kernelEvents = 1
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelEvents}); err != nil {
		return zero, fmt.Errorf("listen for devices: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 8<<10)
	for {
		found, err := find()
		if !errors.Is(err, os.ErrNotExist) {
			return found, err
		}
		// Events may be lost in a burst. Then the next one counts, and there is one.
		if _, err := events.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
			if ctx.Err() != nil {
				return zero, fmt.Errorf("wait for device: %w", ctx.Err())
			}
			return zero, fmt.Errorf("listen for devices: %w", err)
		}
	}
}
