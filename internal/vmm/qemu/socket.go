package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// directory is an open directory. The sockets in it are reached through its
// descriptor, since a socket's path is limited to 107 bytes and a directory's
// is not.
type directory struct{ file *os.File }

func openDirectory(path string) (*directory, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &directory{f}, nil
}

func (d *directory) Close() error { return d.file.Close() }

// path is a short name of a file in the directory, good for this process and
// for as long as the directory is open.
func (d *directory) path(name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(d.file.Fd())) + "/" + name
}

// listen makes a listening socket that only this user may connect to, in place
// of one that a dead process left. Connections wait in its backlog, so it can
// be used before QEMU has taken it over. The caller closes the file.
func (d *directory) listen(ctx context.Context, name string) (_ *os.File, err error) {
	if err := d.remove(name); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmodErr error
		// On Linux, the mode of the socket is that of the file bind makes of it.
		err := c.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmodErr)
	}}
	l, err := config.Listen(ctx, "unix", d.path(name))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	unixListener := l.(*net.UnixListener)
	unixListener.SetUnlinkOnClose(false)
	f, err := unixListener.File()
	if closeErr := unixListener.Close(); err == nil && closeErr != nil {
		return nil, errors.Join(closeErr, f.Close())
	}
	return f, err
}

func (d *directory) dial(ctx context.Context, name string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", d.path(name))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", name, err)
	}
	return conn, nil
}

func (d *directory) remove(name string) error {
	err := unix.Unlinkat(int(d.file.Fd()), name, 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}
