package network

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const tunDevice = "/dev/net/tun"

// openTAP makes a TAP interface with the lowest free index, down and without
// an address. It lives as long as the file or a duplicate is open.
func openTAP() (*os.File, string, error) {
	// Non-blocking, so that the runtime's poller can wait for it; before the
	// interface is attached there is nothing to poll.
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", fmt.Errorf("open TAP: %w", &os.PathError{Op: "open", Path: tunDevice, Err: err})
	}
	request, err := unix.NewIfreq(interfacePrefix + "%d")
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, "", fmt.Errorf("create TAP: %w", err)
	}
	return os.NewFile(uintptr(fd), tunDevice), request.Name(), nil
}
